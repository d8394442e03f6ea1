"""What was measured so far: looked up before anything is run, in memory and in the journal."""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from modes_fx.calibration.journal import Journal
from modes_fx.calibration.measurement import Measurement
from modes_fx.calibration.processes import Processes

Description = Mapping[str, Any]


class Ledger:
    """Measurements by description, the same in all processes; the main one keeps the journal.

    Attributes:
        measured: those that were asked for, by key, in the order of first asking.
        run: how many of them this run had to make.
        layer_forwards: how many samples went through how many MoE layers, multiplied.
    """

    def __init__(self, samples: int, journal: Journal | None, processes: Processes) -> None:
        """Take over what an earlier run left in the journal.

        Args:
            samples: how many samples one pass has.
            journal: of the main process; None keeps nothing.
            processes: those that measure together.
        """
        self.measured: dict[str, tuple[Description, Measurement]] = {}
        self.run = 0
        self.layer_forwards = 0
        self._samples_run = 0
        self._samples = samples
        self._journal = journal
        self._processes = processes
        self._known = processes.on_main(lambda: journal.records if journal else {})
        self._tensors: dict[str, dict[str, Tensor]] = {}

    @property
    def passes(self) -> float:
        """How often all samples went through the model for what was asked for so far."""
        return self._samples_run / self._samples

    def measurement(
        self, description: Description, measure: Callable[[], Measurement]
    ) -> Measurement:
        """Return a measurement, making and journalling it where it is not known yet."""
        key, journal = key_of(description), self._journal
        if key in self.measured:
            return self.measured[key][1]
        if key in self._known:
            found = Measurement.from_dict(self._known[key]["result"])
        else:
            found = measure()
            self.run += 1
            fields = {"request": dict(description), "result": found.to_dict()}
            self._processes.on_main(lambda: journal.put(key, **fields) if journal else None)
        self.measured[key] = description, found
        self._count(len(found.difference.samples), found.layer_forwards)
        return found

    def tensors(
        self,
        description: Description,
        compute: Callable[[], dict[str, Tensor]],
        layer_forwards: int = 0,
        samples: int = 0,
    ) -> dict[str, Tensor]:
        """Return tensors that take a run over the samples, computing them where they are not known.

        Args:
            description: says all of what is computed.
            compute: called in all processes; returns the same in all.
            layer_forwards: what it takes.
            samples: likewise, how many are run.
        """
        key = key_of(description)
        if key not in self._tensors:
            journal = self._journal
            known = key in self._known
            found = self._processes.on_main(
                lambda: journal.tensors(key) if journal and known else None
            )
            if found is None:
                found = computed = compute()

                def save() -> None:
                    if journal:
                        journal.save_tensors(key, computed)
                        if not known:
                            journal.put(key, request=dict(description))

                self._processes.on_main(save)
            self._tensors[key] = found
            self._count(samples, layer_forwards)
        return self._tensors[key]

    def _count(self, samples: int, layer_forwards: int) -> None:
        self._samples_run += samples
        self.layer_forwards += layer_forwards


def key_of(description: Description) -> str:
    """Return what names a description in a journal: 64 hexadecimal digits.

    Args:
        description: JSON-ready values; the order of names does not matter.
    """
    canonical = json.dumps(description, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
