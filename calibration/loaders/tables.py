"""Tables of samples: parquet files in a folder, or a data set of the hub."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def open_table(source: str, config: str | None, split: str | None) -> Any:
    """Open a table of the ``datasets`` library; its rows are read when they are asked for.

    Args:
        source: a local folder, as downloaded from the hub or with parquet files of one's own, or
            the id of a hub data set.
        config: the part of the data set, a folder of its own; None where it has but one.
        split: a part of that; None where it has but one.

    Raises:
        ValueError: ``datasets`` is not installed, or there is no such data set; says what to do.
    """
    try:
        import datasets
    except ImportError:
        raise ValueError(
            "reading data sets needs the datasets library: pip install 'modes-fx[data]'"
        ) from None
    if Path(source).exists():
        files = _parquet_files(Path(source), config, split)
        return datasets.load_dataset("parquet", data_files={"train": files}, split="train")
    try:
        loaded = datasets.load_dataset(source, config, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"the data set {source!r} cannot be loaded: {reason} Name a local folder with parquet "
            "files, or the id of a hub data set"
        ) from error
    if isinstance(loaded, datasets.DatasetDict):
        if len(loaded) > 1:
            raise ValueError(
                f"{source!r} has the splits {', '.join(loaded)}: choose one with --split"
            )
        return next(iter(loaded.values()))
    return loaded


def require_columns(table: Any, columns: Sequence[str], name: str) -> None:
    """Check that a table has columns.

    Raises:
        ValueError: one is missing; says which there are.
    """
    if missing := [column for column in columns if column not in table.column_names]:
        raise ValueError(
            f"{name} has no column {missing[0]!r}; it has {', '.join(table.column_names)}. Say "
            "which columns hold what: --column question=... --column answer=... --column image=..."
        )


def _parquet_files(folder: Path, config: str | None, split: str | None) -> list[str]:
    """The parquet files of a config and a split, in a folder as the hub lays it out."""
    if folder.is_file():
        return [str(folder)]
    files = sorted(folder.rglob("*.parquet"))
    inner = [path.relative_to(folder) for path in files]
    chosen = [
        str(path)
        for path, parts in zip(files, (path.parts for path in inner), strict=True)
        if (config is None or config in parts[:-1])
        and (split is None or parts[-1].startswith(f"{split}-") or split in parts[:-1])
    ]
    if not chosen:
        sought = "/".join(part for part in (config, split) if part)
        raise ValueError(
            f"{folder} holds no parquet file{f' of {sought}' if sought else ''}; it holds "
            f"{', '.join(map(str, inner[:5])) or 'none at all'}"
        )
    return chosen
