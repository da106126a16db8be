"""Judge a batch of tensors before anything is saved: python examples/tensors.py"""

import torch

from imgsafety import Scanner

# What a decoder gives: (batch, channels, height, width) in [-1, 1], in half precision, on any device.
made = torch.linspace(-1, 1, 2 * 3 * 64 * 64).reshape(2, 3, 64, 64).to(torch.bfloat16)

for index, result in enumerate(Scanner().check_tensor(made, value_range=(-1, 1))):
    print(index, result.verdict, *result.reasons, result.error or "")
