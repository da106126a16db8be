"""The check on any pipeline's way out: python examples/diffusers_guard.py MODEL_FOLDER PROMPT OUTPUT.png

Works for pipelines without a slot (SDXL, Flux, SD3), for videos, and for image-to-image, where it sees both pictures.
"""

import sys

from diffusers import DiffusionPipeline

from imgsafety.integrations.diffusers import guard

folder, prompt, output = sys.argv[1:]
pipeline = guard(DiffusionPipeline.from_pretrained(folder), on_flagged="mark")

made = pipeline(prompt, num_inference_steps=4)
for image, result in zip(made.images, made.safety_results, strict=True):
    print(output, result.verdict, *result.reasons)
    if result.verdict == "allow":  # with "mark" it is up to you
        image.save(output)
