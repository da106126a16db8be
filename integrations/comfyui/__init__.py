"""The check as a ComfyUI node: IMAGE in; IMAGE, verdict and JSON out.

Put this folder into ComfyUI's `custom_nodes` and install imgsafety into ComfyUI's Python (see README.md beside this file).
What a reader would get wrong: an IMAGE is a batch, `(batch, height, width, channels)` in [0, 1]. The verdict is the gravest
of the batch; the JSON has one result per picture, in order.
"""

import json
from typing import Any

from imgsafety import Scanner, SetupError
from imgsafety.flagged import CHOICES, OnFlagged, check_choice, held
from imgsafety.policy import shipped_policies
from imgsafety.result import SEVERITY


class CheckImages:
    """Judge pictures before they are saved or shown; with the picture that came in, judge edits."""

    CATEGORY = "imgsafety"
    FUNCTION = "check"
    RETURN_TYPES = ("IMAGE", "STRING", "STRING")
    RETURN_NAMES = ("images", "verdict", "json")
    DESCRIPTION = "Holds back pictures of apparent minors and minimal attire, and edits that undress somebody."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  ComfyUI asks for this name
        """Tell ComfyUI what goes in."""
        policies = {"default": "default", "tooltip": "Rules that turn scores into verdicts."}
        choices = {"default": "blank", "tooltip": "blank: black pictures; raise: stop the workflow; mark: only say so."}
        return {
            "required": {
                "images": ("IMAGE",),
                "policy": (list(shipped_policies()), policies),
                "on_flagged": (list(CHOICES), choices),
            },
            "optional": {
                "before": ("IMAGE", {"tooltip": "The picture that came in, when this is an edit."}),
                "model": ("STRING", {"default": "", "tooltip": "Model file instead of the shipped one."}),
                "policy_file": ("STRING", {"default": "", "tooltip": "TOML file instead of the policy above."}),
            },
        }

    def __init__(self) -> None:
        # ComfyUI makes one object per node of a workflow and keeps it, so the model is loaded once.
        self._scanners: dict[tuple[str, str], Scanner] = {}

    def check(
        self, images: Any, policy: str, on_flagged: OnFlagged, before: Any = None, model: str = "", policy_file: str = ""
    ) -> tuple[Any, str, str]:
        """Return the pictures with what is not allowed held back, the gravest verdict, and all results as JSON."""
        check_choice(on_flagged)
        scanner = self._scanner(model, policy_file or policy)
        results = scanner.check_many(_pictures(images), None if before is None else _pictures(before))
        blank = [flag and on_flagged == "blank" for flag in held(results, on_flagged)]
        kept = images.detach().clone()
        for index, hidden in enumerate(blank):
            if hidden:
                kept[index] = 0
        # No pictures, no verdict: an empty batch must not read as allowed.
        gravest = max((result.verdict for result in results), key=SEVERITY.__getitem__, default="undecided")
        return kept, gravest, json.dumps([result.to_dict() for result in results], indent=2)

    def _scanner(self, model: str, policy: str) -> Scanner:
        if (model, policy) not in self._scanners:
            scanner = Scanner(model or None, policy)
            scanner.selftest()
            self._scanners[model, policy] = scanner
        return self._scanners[model, policy]


def _pictures(images: Any) -> list[Any]:
    if images.ndim != 4:  # the rows of one picture would be judged as pictures
        raise SetupError(f"images have {images.ndim} dimensions, not (batch, height, width, channels)")
    # Values beyond [0, 1] are cut off when ComfyUI saves or shows them; NaN stays and is undecided.
    return list(images.detach().float().clamp(0, 1).cpu().numpy())


NODE_CLASS_MAPPINGS: dict[str, type] = {"ImgsafetyCheck": CheckImages}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {"ImgsafetyCheck": "Check images (imgsafety)"}
