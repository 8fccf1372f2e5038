"""What generators are built from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from raydiff.data.normalizer import TrajectoryNormalizer
from raydiff.diffusion.bundle import DenoiserBundle


@dataclass(frozen=True)
class Models:
    """``name`` is that of the model which trajectories come from, and ``normalizer`` has the statistics of real
    trajectory rows, by which generated ones are validated.

    Of the rest only what the method needs: the denoiser; the states of the reward model (``None``: rewards stay as
    generated) and of the dynamics ensemble; the real observations ``[K, S]`` that rollouts start from.
    """

    name: str
    normalizer: TrajectoryNormalizer
    bundle: DenoiserBundle | None = None
    reward: dict[str, torch.Tensor] | None = None
    ensemble: dict[str, torch.Tensor] | None = None
    starts: np.ndarray | None = None

    @property
    def observation_size(self) -> int:
        return self.normalizer.observation_size
