"""One file per command of `imgsafety`; `cli.py` puts them together."""
