"""Was somebody undressed? python examples/edit.py BEFORE AFTER"""

import sys

from imgsafety import Scanner

before, after = sys.argv[1:]
result = Scanner().check_edit(before, after)
print(result.verdict, *result.reasons, result.error or "")
