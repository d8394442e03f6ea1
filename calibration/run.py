"""A whole calibration into a folder: the policy, how it compares, and the report."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from modes_fx.calibration.baselines import baselines
from modes_fx.calibration.calibrator import Calibration, run_calibration
from modes_fx.calibration.compare import compare
from modes_fx.calibration.encode import Chat
from modes_fx.calibration.journal import JournalError, locked
from modes_fx.calibration.options import CalibrationOptions
from modes_fx.calibration.processes import Processes
from modes_fx.calibration.progress import shown_progress
from modes_fx.calibration.report import CalibrationReport, Compared, build_report, write_report
from modes_fx.calibration.request import Request
from modes_fx.calibration.session import (
    JOURNAL_FOLDER,
    Session,
    as_batches,
    open_session,
    peak_memory,
)

COMPARISON_FOLDER = "comparison"


def calibrate_into(
    folder: Path,
    model: PreTrainedModel,
    processor: Any,
    data: Sequence[Chat],
    targets: Iterable[float],
    *,
    options: CalibrationOptions,
    compare_on: Sequence[Chat] | None = None,
    progress: bool = True,
) -> CalibrationReport:
    """Calibrate a policy and write it into a folder, with a report and the journal.

    Args:
        folder: made if there is none; a calibration that was stopped in it goes on.
        model: a transformers model, not attached; as it was again afterwards.
        processor: its processor, or its tokenizer.
        data: chats to calibrate on.
        targets: skip ratios.
        options: how.
        compare_on: other chats, to compare the policy with other methods on.
        progress: whether to show how far it is.

    Returns:
        The report, in every process; the main one writes.

    Raises:
        JournalError: the folder is of another calibration, another run is at work in it, or a file
            cannot be written; what was measured is kept.
        UnreachableTargetError: a target is higher than what can be skipped in the data.
        MatchError: an MoE layer of the model cannot be rewritten.
        ValueError: the data is of no use; says why.
    """
    processes = Processes()
    with ExitStack() as lock:
        processes.on_main(lambda: lock.enter_context(locked(folder / JOURNAL_FOLDER)))
        found = run_calibration(
            model, processor, data, targets, options=options, progress=progress, folder=folder
        )
        processes.on_main(lambda: _written(folder, lambda: found.policy.save_pretrained(folder)))
        compared = None
        if compare_on is not None:
            compared = _compare(folder, model, processor, found, compare_on, options, progress)
        peaks = processes.gather(peak_memory)
        most = {name: max(peak[name] for peak in peaks) for name in peaks[0]}
        report = build_report(found, options, processes.count, most, compared)
        processes.on_main(lambda: _written(folder, lambda: write_report(report, folder)))
    return report


def _compare(
    folder: Path,
    model: PreTrainedModel,
    processor: Any,
    found: Calibration,
    chats: Sequence[Chat],
    options: CalibrationOptions,
    progress: bool,
) -> Compared:
    """Fit the other methods on the calibration's samples, and measure all on the others."""
    first = found.reference.batches
    with open_session(
        model, first, found.draft, folder=folder, compiler=options.compiler
    ) as session:
        draft, targets = found.policy, found.policy.targets
        modalities = list(next(iter(draft.alpha.values())))
        others = baselines(
            session.evaluator, draft, found.shares, modalities, targets, _top_k(found, session)
        )
    with open_session(
        model,
        as_batches(processor, chats, options.batch_size),
        found.draft,
        folder=folder / COMPARISON_FOLDER,
        compiler=options.compiler,
    ) as session:
        evaluator = session.evaluator
        summary = f"Comparing with other methods on {evaluator.reference.samples} other samples"
        show = progress and evaluator.processes.is_main
        with shown_progress(summary, show=show) as stage:
            full = evaluator.measure(Request())
            rows = compare(evaluator, found.policy, others, stage("comparison"))
    return Compared(evaluator.reference.samples, full, rows)


def _top_k(found: Calibration, session: Session) -> int:
    """K: how many pairs a layer has for each token."""
    measured = next(iter(found.tuned.chosen.values())).measurement
    pairs = next(iter(measured.counts.values()))[:, 0].sum()
    return int(pairs) // sum(session.tokens.values())


def _written(folder: Path, write: Callable[[], object]) -> None:
    try:
        write()
    except OSError as error:
        raise JournalError(
            f"the results cannot be written to {folder}: {error}. What was measured is kept in the "
            "journal: make room and run the same again, which measures nothing anew"
        ) from error
