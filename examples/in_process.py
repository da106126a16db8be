"""Judge pictures inside your program: python examples/in_process.py PICTURE..."""

import sys

from imgsafety import Scanner

scanner = Scanner()
scanner.selftest()  # raises when model, runtime and policy do not work together: nothing is let through then

for path in sys.argv[1:]:
    result = scanner.check(path)
    # Show it when the verdict is `allow`. `review` wants a person's eye; `undecided` could not be judged, see `error`.
    print(path, result.verdict, *result.reasons, result.error or "")
