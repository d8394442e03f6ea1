"""``python -m modes_fx``: the command line."""

from modes_fx.cli import app

app(prog_name="modes-fx")
