"""What generators are built from."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from raydiff.diffusion.bundle import DenoiserBundle


@dataclass(frozen=True)
class Models:
    """The denoiser, and the state of the reward model (``None``: rewards stay as generated)."""

    bundle: DenoiserBundle
    reward: dict[str, torch.Tensor] | None
