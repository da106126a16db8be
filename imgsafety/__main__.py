"""`python -m imgsafety` is the command `imgsafety`."""

from imgsafety.cli import run

run()
