"""Longer fuzzing with atheris, guided by coverage: `pip install atheris`, `python -m tests.fuzz.run decode CORPUS -runs=1000000`.

The first word names the target, the others are libFuzzer's. CORPUS is a folder; it gets one small file per format first.
"""

import sys
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["imgsafety", "training", "PIL"]):
    from tests.fuzz.targets import MANIFEST, TARGETS, make_run
from tests.hostile import ANIMATED, STILL, animation, drawing, encoded
from tests.toy import POLICY, SPEC, to_json


def seeds(target: str) -> list[bytes]:
    """What the fuzzer starts from."""
    if target == "decode":
        frames = [(255, 0, 0), (0, 255, 0)]
        return [*(encoded(drawing(), name) for name in STILL), *(animation(name, frames) for name in ANIMATED)]
    return {"policy": [POLICY.encode()], "spec": [to_json(SPEC).encode()], "manifest": [MANIFEST], "run": [make_run()]}[target]


def main(target: str, folder: str, *options: str) -> None:
    """Fuzz until told otherwise by the options, or until something is found."""
    warnings.simplefilter("ignore")
    Path(folder).mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds(target)):
        Path(folder, f"seed-{number}").write_bytes(seed)
    atheris.Setup([sys.argv[0], folder, *options], TARGETS[target])
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
