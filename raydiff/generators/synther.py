"""Single transitions from the diffusion model, unguided (SynthER; section C)."""

from __future__ import annotations

import numpy as np
import torch

from raydiff.config import GuidanceConfig, SamplerConfig
from raydiff.diffusion.bundle import DenoiserBundle
from raydiff.generators.api import GeneratedTrajectories, action_agreement, keyed_generator
from raydiff.generators.sampling import Sampling, churn_of
from raydiff.guidance.api import ActionDistribution
from raydiff.types import Trajectories


class TransitionGenerator:
    """Samples transitions from pure noise. Keeps no state between calls, so equal calls give equal bytes.

    ``bundle`` is a denoiser of layout ``transition``. The policy only tells how well the actions fit it; ``delta`` is
    the standard deviation that this gives to a deterministic one.
    """

    def __init__(
        self,
        bundle: DenoiserBundle,
        sampler: SamplerConfig,
        device: torch.device | str = "cpu",
        delta: float = GuidanceConfig().delta,
    ) -> None:
        self.sampling, self.delta = Sampling(bundle, "transition", sampler, device), delta

    @torch.inference_mode()
    def generate(
        self, policy: ActionDistribution | None, n: int, key: tuple[int, ...], strength: float | None = None
    ) -> GeneratedTrajectories:
        """``n`` transitions as trajectories of two rows ``[n, 2, S+A+2]``. Nothing is guided: ``strength`` has no
        effect."""
        sampling = self.sampling
        bundle, generator = sampling.bundle, keyed_generator(key, sampling.device)
        x = sampling.solve(
            sampling.denoise,
            sampling.noise(n, generator),
            sampling.sigmas,
            churn=churn_of(sampling.sampler),
            generator=generator,
        )
        rows = bundle.normalizer.decode(x)[:, 0].cpu().numpy()
        trajectories = as_trajectories(rows, bundle.observation_size, bundle.action_size)
        agreement = None if policy is None else action_agreement(trajectories, policy, sampling.device, self.delta)
        return GeneratedTrajectories(trajectories, sampling.calls(), "none", 0.0, agreement)


def as_trajectories(rows: np.ndarray, observation_size: int, action_size: int) -> Trajectories:
    """Transitions ``rows [n, 2S+A+2]`` (observation | action | reward | terminal | next observation) as trajectories of
    one step."""
    columns = observation_size + action_size + 2
    pair = np.zeros((len(rows), 2, columns), dtype=np.float32)
    pair[:, 0] = rows[:, :columns]
    pair[:, 1, :observation_size] = rows[:, columns:]
    return Trajectories(pair, observation_size, action_size)
