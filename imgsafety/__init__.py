"""Output check for image generators: apparent minors and minimal attire, with reasons.

    from imgsafety import Scanner
    result = Scanner().check(image)      # path, bytes, PIL image, array or tensor
    result.verdict, result.reasons       # "block", (Reason(rule="minor-exposed", ...),)
"""

import importlib
import os
import typing

if typing.TYPE_CHECKING:
    from imgsafety.errors import FlaggedError, ImageError, ImgSafetyError, ModelError, PolicyError, SetupError
    from imgsafety.policy import Policy, load_policy
    from imgsafety.result import Reason, Result, Scores, Verdict
    from imgsafety.scan import Scanner
    from imgsafety.source import find_images

# Official builds of onnxruntime send Microsoft events about every session, and keep an identifier of the machine in the user's
# home, unless they are told not to before they load. What this package looks at is nobody's business.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "1.0.0"
_HOMES = ("errors", "result", "policy", "source", "scan")  # modules of the public names
__all__ = [
    "FlaggedError",
    "ImageError",
    "ImgSafetyError",
    "ModelError",
    "Policy",
    "PolicyError",
    "Reason",
    "Result",
    "Scanner",
    "Scores",
    "SetupError",
    "Verdict",
    "find_images",
    "load_policy",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for: whoever only names the package need not wait for numpy and Pillow."""
    if name in _HOMES:
        return importlib.import_module(f"imgsafety.{name}")
    for home in _HOMES if name in __all__ else ():
        value = vars(importlib.import_module(f"imgsafety.{home}")).get(name)
        if value is not None:
            globals()[name] = value
            return value
    raise AttributeError(f"module 'imgsafety' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
