"""What is fuzzed: one function per parser, from bytes to nothing. Whatever is not the parser's own error is a finding."""

import contextlib

from imgsafety.decode import Limits, decode
from imgsafety.errors import ImageError, ModelError, PolicyError
from imgsafety.policy import parse_policy
from imgsafety.spec import from_json

LIMITS = Limits(max_pixels=100_000, timeout=5)
SIDE = 32


def fuzz_decode(data: bytes) -> None:
    """A picture's bytes: views in RGB, or `ImageError`."""
    with contextlib.suppress(ImageError):
        assert all(view.image.mode == "RGB" for view in decode(data, LIMITS, SIDE))


def fuzz_policy(data: bytes) -> None:
    """A policy's TOML: a policy whose thresholds lie between 0 and 1, or `PolicyError`."""
    with contextlib.suppress(PolicyError):
        policy = parse_policy(data.decode(errors="replace"))
        assert all(0 <= threshold <= 1 for rule in policy.rules for threshold in rule.when.values())


def fuzz_spec(data: bytes) -> None:
    """A spec's JSON: a spec that can work, or `ModelError`."""
    with contextlib.suppress(ModelError):
        assert from_json(data.decode(errors="replace")).heads


TARGETS = {"decode": fuzz_decode, "policy": fuzz_policy, "spec": fuzz_spec}
