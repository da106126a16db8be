"""Every error the package raises on purpose.

    ImgSafetyError
    ├── ModelError      the model file is missing, damaged, or not what its spec says
    ├── PolicyError     the policy cannot be read, or does not fit the model
    ├── ImageError      one picture cannot be judged; `Scanner` turns it into an `undecided` result
    ├── FlaggedError    an integration was asked to raise for pictures that are not allowed
    └── SetupError      an argument or the machine makes the work impossible (paths, providers, output)

A wrong set-up is raised to the caller. One bad picture never is: `Scanner` reports it as a result.
"""

from collections.abc import Sequence
from typing import Any


class ImgSafetyError(Exception):
    """Parent of all errors of this package."""


class ModelError(ImgSafetyError):
    """The model file is missing, damaged, or its graph and its spec disagree."""


class PolicyError(ImgSafetyError):
    """The policy file is missing, malformed, or names scores or a model that are not there."""


class ImageError(ImgSafetyError):
    """One picture cannot be decoded or judged. The message says why."""


class SetupError(ImgSafetyError):
    """The work cannot start or go on: a missing path, an unwritable output, an absent provider."""


class FlaggedError(ImgSafetyError):
    """At least one picture is not allowed; `results` holds the `Result` of every picture, in order."""

    def __init__(self, message: str, results: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.results = tuple(results)
