"""The tables and plots of generation."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console

from modes_fx.bench.demo.report import TimedCase, TimingSection
from modes_fx.bench.end_to_end.policies import PRESET
from modes_fx.bench.end_to_end.report import EndToEnd
from modes_fx.bench.environment import describe
from modes_fx.bench.tables import Page, print_tables, tables_markdown

TIMED = ("way", "skipped", "first token ms", "+-", "vs HF", "decode tokens/s", "+-", "vs HF")
COMPILED = ("way", "cold s", "warm s", "graphs", "recompiled", "peak MB", "weights MB")


def print_end_to_end(bench: EndToEnd, console: Console) -> None:
    """Print a table for each batch size, and one of compiling."""
    print_tables(_tables(bench), bench.failures, console)


def end_to_end_markdown(bench: EndToEnd) -> str:
    """Return the tables as Markdown, with where and how they were measured."""
    preset = " (no calibration: it tells of speed only)" if bench.policy == PRESET else ""
    threads = bench.environment.threads
    lines = [
        f"# {bench.model}: generation",
        "",
        f"{describe(bench.environment)}, {threads} thread{'s' * (threads > 1)}. {bench.dtype}, "
        f"{bench.layers} MoE layers, policy: {bench.policy}{preset}, compiled by "
        f"{bench.compiler}. Medians of {bench.batches[0].rounds} rounds, in each of which all "
        "ways take turns; ratios are within a round, to transformers' fastest way of that phase; "
        "+- is the range of the middle half, as a share of the median.",
        "",
    ]
    lines += tables_markdown(_tables(bench), bench.failures)
    return "\n".join(lines).rstrip() + "\n"


def draw(bench: EndToEnd) -> Figure:
    """Draw both phases over the batch size, a line for each way."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    first, decode = figure.subplots(1, 2)
    sizes = [timing.batch for timing in bench.batches]
    for place, case in enumerate(bench.batches[0].cases):
        same = [timing.cases[place] for timing in bench.batches]
        style = "-" if case.ours else "--"
        seconds = [1e3 * one.prefill.wall.median for one in same]
        first.plot(sizes, seconds, style, marker="o", label=case.name)
        rates = [one.decode_tokens_per_second for one in same]
        decode.plot(sizes, rates, style, marker="o")
    for axes, title in ((first, "time to first token, ms"), (decode, "decoded tokens/s")):
        axes.set(xlabel="batch", title=title, xscale="log", ylim=(0, None))
        axes.set_xticks(sizes, [str(size) for size in sizes])
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    return figure


def save_end_to_end(bench: EndToEnd, folder: Path) -> None:
    """Write ``end_to_end.json``, ``end_to_end.md`` and ``end_to_end.png`` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "end_to_end.json").write_text(bench.model_dump_json(indent=2) + "\n", "utf-8")
    (folder / "end_to_end.md").write_text(
        end_to_end_markdown(bench) + "\n![](end_to_end.png)\n", "utf-8"
    )
    draw(bench).savefig(folder / "end_to_end.png", dpi=120)


def _tables(bench: EndToEnd) -> list[Page]:
    tables = [
        Page(_title(timing), TIMED, [_timed(bench, case) for case in timing.cases])
        for timing in bench.batches
    ]
    if bench.compilations:
        rows: list[tuple[str, ...]] = [
            (
                one.way,
                f"{one.cold_seconds:.1f}",
                f"{one.warm_seconds:.1f}",
                str(one.graphs),
                str(one.recompiled),
                f"{one.peak_bytes / 1e6:.0f}",
                f"{one.weight_bytes / 1e6:.0f}",
            )
            for one in bench.compilations
        ]
        tables.append(Page(f"Compiling, batch {bench.batches[0].batch}", COMPILED, rows))
    return tables


def _title(timing: TimingSection) -> str:
    return (
        f"Batch {timing.batch}: prompts of {timing.prompt_tokens} tokens with an image, "
        f"{timing.new_tokens} tokens generated"
    )


def _timed(bench: EndToEnd, case: TimedCase) -> tuple[str, ...]:
    skipped = 0.0 if case.target is None else bench.skipped[case.target]
    first, decode = case.prefill, case.decode
    return (
        case.name,
        f"{skipped:.1%}" if case.target is not None else "0",
        f"{1e3 * first.wall.median:.1f}",
        f"{(first.wall.upper - first.wall.lower) / first.wall.median:.0%}",
        f"{first.speedup.median:.2f}x",
        f"{case.decode_tokens_per_second:.1f}",
        f"{(decode.wall.upper - decode.wall.lower) / decode.wall.median:.0%}",
        f"{decode.speedup.median:.2f}x",
    )
