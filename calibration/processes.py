"""Several processes that calibrate together: each runs its share, all take the same decisions."""

import os
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

Result = TypeVar("Result")

WORLD_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Where launchers say how many processes there are."""


class Processes:
    """The processes that ``accelerate launch`` or ``torchrun`` started, or this one alone.

    Attributes:
        index: of this process, from 0.
        count: how many there are.
    """

    def __init__(self) -> None:
        """Join the others, if there are any; warns where accelerate started none of them."""
        _warn_if_left_alone()
        launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
        together = launched or torch.distributed.is_initialized()
        state = PartialState(cpu=not torch.accelerator.is_available()) if together else None
        self._state = state
        self.index: int = state.process_index if state else 0
        self.count: int = state.num_processes if state else 1

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes files and shows progress."""
        return self.index == 0

    def close(self) -> None:
        """Part from the others, once all have come here: nothing can be shared afterwards."""
        if self._state is not None:
            self._state.wait_for_everyone()
            self._state.destroy_process_group()

    def share_of(self, places: int) -> range:
        """Return which of so many places are this process's share: every ``count``-th."""
        return range(self.index, places, self.count)

    def gather(self, compute: Callable[[], Result]) -> list[Result]:
        """Call something in every process and return all results, in the order of the processes.

        Raises:
            RuntimeError: it failed in another process. An error of this process is raised as it is.
        """
        if self.count == 1:
            return [compute()]
        error: Exception | None = None
        try:
            outcome: tuple[Any, str | None] = (compute(), None)
        except Exception as raised:  # whatever it is: the other processes wait to be told
            error, outcome = raised, (None, f"{type(raised).__name__}: {raised}")
        outcomes: list[tuple[Any, str | None]] = gather_object([outcome])
        if error is not None:
            raise error
        for index, (_, failure) in enumerate(outcomes):
            if failure is not None:
                raise RuntimeError(f"process {index} of {self.count} failed: {failure}")
        return [result for result, _ in outcomes]

    def on_main(self, compute: Callable[[], Result]) -> Result:
        """Call something in the main process alone and return its result in all of them.

        Raises:
            RuntimeError: it failed there. In the main process its own error is raised.
        """
        if self.count == 1:
            return compute()
        if not self.is_main:
            return _unwrap(broadcast_object_list([None])[0])
        error: Exception | None = None
        try:
            outcome: tuple[Any, str | None] = (compute(), None)
        except Exception as raised:  # whatever it is: the other processes wait to be told
            error, outcome = raised, (None, f"{type(raised).__name__}: {raised}")
        broadcast_object_list([outcome])
        if error is not None:
            raise error
        return outcome[0]


def _warn_if_left_alone() -> None:
    """Say so where ``accelerate launch`` was asked for several processes and started one.

    It then tells the one where the others would meet, but not how many there are.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ
    if launched and not any(name in os.environ for name in WORLD_SIZES):
        warnings.warn(
            "accelerate was asked for several processes but started this one alone, as it does "
            "with --cpu, and without --multi_gpu where there are no GPUs. To calibrate in N "
            "processes on CPUs as well, start them by 'accelerate launch --multi_gpu "
            "--num_processes N' or 'torchrun --nproc-per-node N'; one gives the same policy, later",
            stacklevel=3,
        )


def _unwrap(outcome: tuple[Any, str | None]) -> Any:
    result, failure = outcome
    if failure is not None:
        raise RuntimeError(f"the main process failed: {failure}")
    return result
