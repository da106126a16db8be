"""The check in Stable Diffusion's own slot: python examples/diffusers_slot.py MODEL_FOLDER PROMPT OUTPUT.png"""

import sys

from diffusers import StableDiffusionPipeline

from imgsafety.integrations.diffusers import SafetyChecker

folder, prompt, output = sys.argv[1:]
checker = SafetyChecker(on_flagged="blank")  # or "raise", or "mark"
pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=checker)

image = pipeline(prompt, num_inference_steps=4).images[0]
image.save(output)  # black when it is not allowed
for result in checker.results:
    print(output, result.verdict, *result.reasons, result.error or "")
