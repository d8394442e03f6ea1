"""The run of a calibration: its samples, processes and journal, around what is decided in it."""

import hashlib
import resource
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from modes_fx.calibration.data import Batch, count_tokens, token_codes
from modes_fx.calibration.encode import Chat, ChatBatches
from modes_fx.calibration.evaluator import Evaluator
from modes_fx.calibration.identity import batch_digest, fingerprint
from modes_fx.calibration.journal import Journal, locked
from modes_fx.calibration.processes import Processes
from modes_fx.calibration.reference import Reference, own_places
from modes_fx.calibration.store import TensorStore
from modes_fx.policy import SkipPolicy
from modes_fx.vocabulary import Modality

JOURNAL_FOLDER = "journal"


@dataclass(frozen=True)
class Session:
    """A calibration that is running.

    Attributes:
        evaluator: measures.
        tokens: how many tokens of each modality code all samples hold.
        created: when the calibration began, in ISO 8601; a resumed one keeps it.
        resumed: how many measurements an earlier run left.
    """

    evaluator: Evaluator
    tokens: dict[Modality, int]
    created: str
    resumed: int


@contextmanager
def open_session(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    policy: SkipPolicy,
    *,
    folder: Path | None = None,
    compiler: str = "eager",
    processes: Processes | None = None,
) -> Iterator[Session]:
    """Prepare a model for measuring, or go on where an earlier run with the same folder stopped.

    Args:
        model: a transformers model, not attached; unchanged again afterwards.
        batches: the samples, as :func:`as_batches` makes them.
        policy: what says how pairs are compared with thresholds.
        folder: where measurements are kept; None keeps none.
        compiler: see ``modes_fx.backend.BackendOptions``.
        processes: those that calibrate together; by default those of ``accelerate launch``.

    Raises:
        JournalError: the folder holds the journal of another calibration, another run is at work
            in it, or it cannot be written.
        ValueError: a sample cannot be encoded or has no answer; names it.
    """
    processes = processes or Processes()
    with ExitStack() as lock:
        if folder is not None:
            journal_folder = folder / JOURNAL_FOLDER
            processes.on_main(lambda: lock.enter_context(locked(journal_folder)))
        with _prepared(model, batches, policy, folder, compiler, processes) as session:
            yield session


@contextmanager
def _prepared(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    policy: SkipPolicy,
    folder: Path | None,
    compiler: str,
    processes: Processes,
) -> Iterator[Session]:
    reference = Reference(batches)
    own = own_places(reference.layout, processes)
    tokens, data = _survey(model, reference, own, policy, processes)
    journal, resumed, logits = None, 0, None
    created = datetime.now(UTC).isoformat(timespec="seconds")
    if folder is not None:
        identity = fingerprint(
            model, policy, data, reference.samples, len(reference.layout), compiler
        )
        digest = hashlib.sha256(repr(identity).encode()).hexdigest()
        logits = folder / JOURNAL_FOLDER / f"logits-{digest:.12}"

        def open_journal() -> tuple[str, int]:
            nonlocal journal
            journal = Journal(folder / JOURNAL_FOLDER, identity)
            return journal.created, journal.resumed

        created, resumed = processes.on_main(open_journal)
        reference = Reference(batches, TensorStore(logits))
    with Evaluator(
        model, reference, policy, compiler=compiler, journal=journal, processes=processes
    ) as evaluator:
        yield Session(evaluator, tokens, created, resumed)
    if logits is not None:
        shutil.rmtree(logits, ignore_errors=True)  # another process may have done it


def as_batches(
    processor: Any, data: Sequence[Chat] | Sequence[Batch], batch_size: int
) -> Sequence[Batch]:
    """Lay out samples in batches; chats are encoded when they are needed, half of them held back.

    Raises:
        ValueError: a chat does not end with an answer; names it.
    """
    if len(data) and isinstance(data[0], Batch):
        return [batch for batch in data if isinstance(batch, Batch)]
    chats: Any = data
    return ChatBatches(processor, chats, batch_size, hold_back=True)


def peak_memory() -> dict[str, int]:
    """Return the most bytes that this process held so far, of the host and of its accelerator."""
    peaks = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if torch.cuda.is_available():
        devices = range(torch.cuda.device_count())
        peaks["accelerator"] = sum(torch.cuda.max_memory_allocated(device) for device in devices)
    return peaks


def _survey(
    model: PreTrainedModel,
    reference: Reference,
    own: Sequence[int],
    policy: SkipPolicy,
    processes: Processes,
) -> tuple[dict[Modality, int], str]:
    """Encode this process's samples; return all samples' tokens and digest."""

    def survey() -> list[tuple[int, dict[Modality, int], str]]:
        found = []
        for place in own:
            batch = reference.batches[place]
            codes = token_codes(model, batch.inputs, policy.special_token_ids)
            found.append((place, count_tokens([codes]), batch_digest(batch)))
        return found

    surveyed = sorted(entry for share in processes.gather(survey) for entry in share)
    tokens = {code: sum(counts[code] for _, counts, _ in surveyed) for code in Modality}
    return tokens, hashlib.sha256("".join(d for *_, d in surveyed).encode()).hexdigest()
