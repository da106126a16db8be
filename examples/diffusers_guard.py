"""The check on any pipeline's way out: python examples/diffusers_guard.py MODEL_FOLDER PROMPT OUTPUT.png

Works for pipelines without a slot (SDXL, Flux, SD3), and for image-to-image, where it sees both pictures. A second picture that is
allowed becomes OUTPUT-1.png, and so on. Pipelines that make videos answer with `frames` in the place of `images`: one list of
frames, and one result, for each video.
"""

import sys
from pathlib import Path

from diffusers import DiffusionPipeline

from imgsafety.integrations.diffusers import guard

folder, prompt, output = sys.argv[1:]
pipeline = guard(DiffusionPipeline.from_pretrained(folder), on_flagged="mark")

made = pipeline(prompt, num_inference_steps=4)
for number, (image, result) in enumerate(zip(made.images, made.safety_results, strict=True)):
    place = Path(output).with_stem(f"{Path(output).stem}-{number}") if number else output
    print(place, result.verdict, *result.reasons, result.error or "")
    if result.verdict == "allow":  # with "mark" it is up to you
        image.save(place)
