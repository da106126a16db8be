"""Output check for image generators: apparent minors and minimal attire, with reasons.

    from imgsafety import Scanner
    result = Scanner().check(image)      # path, bytes, PIL image, array or tensor
    result.verdict, result.reasons       # "block", (Reason(rule="minor-exposed", ...),)
"""

from imgsafety.errors import FlaggedError, ImageError, ImgSafetyError, ModelError, PolicyError, SetupError
from imgsafety.policy import Policy, load_policy
from imgsafety.result import Reason, Result, Scores, Verdict
from imgsafety.scan import Scanner
from imgsafety.source import find_images

__version__ = "1.0.0"
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
