"""Write the records of all types as Markdown for people and JSON for tools."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from modes_fx.bench.coverage.record import TOLERANCE, CallRecord, Record, Verdict

_PLACE = re.compile(r'(?<=File ")/[^"]*/(?=(?:site-packages|python3\.\d+|modes_fx|bench)/)')

TITLE = "Coverage of the mixture-of-experts types of transformers"
ORDER = (Verdict.WRONG, Verdict.FAILED, Verdict.LEFT, Verdict.PASSED, Verdict.EXCLUDED)


def write(records: Sequence[Record], markdown: Path, data: Path) -> None:
    """Write both files."""
    markdown.write_text(as_markdown(records), "utf-8")
    data.write_text(json.dumps(as_data(records), indent=1) + "\n", "utf-8")


def as_data(records: Sequence[Record]) -> dict[str, Any]:
    """Return versions, the summary and all records as plain data."""
    return {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        **_summary(records),
        "types": [_without_places(record.to_json()) for record in records],
    }


def _without_places(record: dict[str, Any]) -> dict[str, Any]:
    """Leave out of tracebacks where on this machine the packages are."""
    return {k: _PLACE.sub("", v) if isinstance(v, str) else v for k, v in record.items()}


def as_markdown(records: Sequence[Record]) -> str:
    """Return the page."""
    summary = _summary(records)
    wrong = [record for record in records if record.verdict is Verdict.WRONG]
    lines = [
        f"# {TITLE}",
        "",
        "<!-- Made by `make coverage`; do not edit. -->",
        "",
        f"transformers {transformers.__version__}, torch {torch.__version__}, float32, CPU, "
        "tiny random models.",
        "",
        f"**{summary['passed']} of {summary['denominator']}** types pass "
        f"({summary['passed'] / max(summary['denominator'], 1):.0%}): every MoE layer rewritten "
        f"and right in prefill and decode. Silently wrong: **{len(wrong)}**.",
        "",
        f"Called with an image: {summary['with_image']}. One graph where the unmodified model is "
        f"one: {summary['fullgraph']} of {summary['original_fullgraph']}. More captures than the "
        f"unmodified model when calls are made again with other thresholds: "
        f"{summary['recaptured']}.",
        "",
        *(["> **SILENTLY WRONG**", *_wrong(wrong), ""] if wrong else []),
        _table(["verdict", "types"], [[v.value, summary["verdicts"][v.value]] for v in ORDER]),
        "",
        _HOW,
        "",
    ]
    for verdict in ORDER:
        chosen = [record for record in records if record.verdict is verdict]
        if chosen:
            lines += [f"## {verdict.value.capitalize()} ({len(chosen)})", ""]
            lines += [_reasons(chosen) if verdict is Verdict.EXCLUDED else _results(chosen), ""]
    return "\n".join(lines)


def _summary(records: Sequence[Record]) -> dict[str, Any]:
    verdicts = Counter(record.verdict for record in records)
    whole = [record for record in records if record.original_fullgraph]
    return {
        "denominator": len(records) - verdicts[Verdict.EXCLUDED],
        "passed": verdicts[Verdict.PASSED],
        "verdicts": {verdict.value: verdicts[verdict] for verdict in ORDER},
        "with_image": sum(record.image for record in records),
        "original_fullgraph": len(whole),
        "fullgraph": sum(record.fullgraph for record in whole),
        "recaptured": sum(record.graphs_again > record.original_graphs_again for record in records),
    }


def _wrong(records: Iterable[Record]) -> list[str]:
    return [f"> - **{record.model_type}**: {'; '.join(record.mistakes)}" for record in records]


def _results(records: Iterable[Record]) -> str:
    heading = ["type", "input", "layers", "all kept", "half skipped", "effect", "kept"]
    heading += ["graphs", "again", "fullgraph", "why not"]
    return _table(heading, [_row(record) for record in records])


def _row(record: Record) -> list[Any]:
    calls = record.calls
    return [
        f"`{record.model_type}`",
        _input(record),
        f"{record.matched}/{len(record.layers)}",
        _largest(call.error_all_kept for call in calls),
        _largest(call.error_skipping for call in calls),
        _largest(call.effect for call in calls),
        _share(calls),
        f"{_sum(call.graphs for call in calls)} ({_sum(record.original_graphs)})",
        f"{record.graphs_again} ({record.original_graphs_again})",
        f"{_tick(record.fullgraph)} ({_tick(record.original_fullgraph)})",
        _first_reason(record),
    ]


def _input(record: Record) -> str:
    parts = ["image" if record.image else "text"]
    if record.image_traceback:
        parts[0] += " (its tiny image call fails)"
    if len(record.calls) > 1:
        parts.append("static cache" if record.static_cache else "dynamic cache")
    else:
        parts.append("no decoding")
    return ", ".join(parts)


def _largest(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{max(known):.0e}" if known else "-"


def _share(calls: Sequence[CallRecord]) -> str:
    pairs = sum(sum(call.pairs.values()) for call in calls)
    return f"{sum(sum(call.kept.values()) for call in calls)}/{pairs}" if pairs else "-"


def _sum(counts: Iterable[int]) -> str:
    return "+".join(map(str, counts))


def _tick(holds: bool) -> str:
    return "yes" if holds else "no"


def _first_reason(record: Record) -> str:
    if record.mistakes:
        return "; ".join(record.mistakes)
    if record.failure:
        return _last_line(record.failure)
    if not record.layers:
        return "the tiny config has no MoE layer"
    if any(call.proves_nothing for call in record.calls):
        return "skipping hardly changes the output, so that an error would not show"
    reasons = dict.fromkeys(record.reasons.values())
    return next(iter(reasons), "") if record.matched < len(record.layers) else ""


def _reasons(records: Iterable[Record]) -> str:
    rows = [[f"`{record.model_type}`", _last_line(record.traceback)] for record in records]
    return _table(["type", "the unmodified model says"], rows)


def _last_line(text: str) -> str:
    return (text.strip() or "?").splitlines()[-1].strip()


def _table(heading: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(
        f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |"
        for line in lines
    )


_HOW = f"""\
## How to read this

Every type of the installed transformers with routed experts is in the denominator. They are found
by reading its source (`bench/coverage/types.py`): a type counts where its modeling code declares
experts, or reads a number of experts from its config, and an auto class gives it a head that
scores tokens. Types that wrap a text model with experts are counted too, as far as their default
config can be made; of those that take any text model, some combinations are tried
(`outer+inner`). A type leaves the denominator only where
the unmodified tiny model cannot be built or run; `coverage.json` holds its traceback. A tiny
config without an MoE layer counts as failed.

- **layers**: rewritten / run by the unmodified model, as the oracle counts them.
- **all kept**, **half skipped**: the largest difference of a logit, over prefill and decode steps,
  as a fraction of the largest logit; from the unmodified model with thresholds that keep all, and
  from the oracle with thresholds that skip about half of the pairs, another for every layer,
  modality and call. Up to {TOLERANCE:.0e} passes. The pairs counted by modality must be the
  oracle's as well.
- **effect**: how far skipping moves the logits, so what a rewrite that skips wrongly would show.
- **kept**: pairs kept / pairs in the gated layers.
- **graphs**: captured for the prefill + each decode step. **again**: more graphs when all calls are
  made again, with other thresholds. **fullgraph**: whether it compiles into one graph. In brackets:
  the unmodified model.

The oracle (`bench/coverage/oracle.py`) runs the model's own eager experts with the weights of
skipped pairs set to 0, through transformers' public experts registry; for types outside of it
through hooks on their Python code. It shares no code with the rewrite."""
