"""``python -m modes_fx.calibration``: ``modes-fx calibrate``, for ``accelerate launch -m``."""

import sys

from modes_fx.cli import app

if __name__ == "__main__":
    app(prog_name="modes-fx", args=["calibrate", *sys.argv[1:]])
