"""What the PyTorch programs in this folder share; PyTorch is all it needs."""

import math
from typing import Any

import torch


def learning_rate(settings: dict[str, Any], step: int) -> float:
    """Of a step (from 0), as the library's AdamW: linear warm-up, then a cosine to 0."""
    given, steps = settings["optimizer"], max(2, settings["num_steps"])
    warm = max(1, round(given["warmup_fraction"] * settings["num_steps"]))
    if step < warm:
        return given["learning_rate"] * step / warm
    done = min(1.0, (step - warm) / (steps - warm))
    return given["learning_rate"] * 0.5 * (1 + math.cos(math.pi * done))


def wait(device: torch.device) -> None:
    """Until the device is at rest."""
    if device.type == "cuda":
        torch.cuda.synchronize()
