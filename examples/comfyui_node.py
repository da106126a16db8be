"""The ComfyUI node outside ComfyUI, to see what it gives: python examples/comfyui_node.py PICTURE

In ComfyUI, copy `integrations/comfyui` into `custom_nodes` and find the node under `imgsafety`.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "integrations"))
import comfyui

image = np.asarray(Image.open(sys.argv[1]).convert("RGB"), np.float32) / 255
images, verdict, results = comfyui.CheckImages().check(torch.from_numpy(image)[None], policy="default", on_flagged="blank")
print(sys.argv[1], verdict)
print(results)
