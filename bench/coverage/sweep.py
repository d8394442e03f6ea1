"""Measure many types, each in a process of its own, so that a crash or a hang is a result."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from modes_fx.bench.coverage.record import Record

LAST_CHARACTERS = 2000


def sweep(
    types: Iterable[str],
    folder: Path,
    *,
    jobs: int,
    timeout: float,
    resume: bool = False,
    on_record: Callable[[Record], None] = lambda record: None,
) -> list[Record]:
    """Measure types in parallel.

    Args:
        types: see ``moe_types``.
        folder: takes one JSON file a type.
        jobs: how many processes run at once.
        timeout: seconds that one type may take.
        resume: read the types that have a file already, instead of measuring them.
        on_record: called with each record as it is done.

    Returns:
        The records, in the order of ``types``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    types = list(types)

    def one(model_type: str) -> Record:
        path = folder / f"{model_type}.json"
        if resume and path.exists():
            return Record.from_json(json.loads(path.read_text("utf-8")))
        record = measure_apart(model_type, timeout)
        path.write_text(json.dumps(record.to_json(), indent=2), "utf-8")
        return record

    records: dict[str, Record] = {}
    with ThreadPoolExecutor(jobs) as pool:
        for future in as_completed([pool.submit(one, model_type) for model_type in types]):
            record = future.result()
            records[record.model_type] = record
            on_record(record)
    return [records[model_type] for model_type in types]


def measure_apart(model_type: str, timeout: float) -> Record:
    """Measure one type in a new process; its crash or its timeout is a failure in the record."""
    command = [sys.executable, "-m", "modes_fx.bench.coverage.worker", model_type]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return Record(model_type, failure=f"not done after {timeout:.0f} s", seconds=timeout)
    if done.returncode != 0:
        last_words = done.stderr[-LAST_CHARACTERS:]
        return Record(model_type, failure=f"exit status {done.returncode}: {last_words}")
    return Record.from_json(json.loads(done.stdout.splitlines()[-1]))
