"""Single transitions from the diffusion model, unguided (SynthER; section C)."""

from __future__ import annotations

import numpy as np
import torch

from raydiff.config import GuidanceConfig, SamplerConfig
from raydiff.diffusion.bundle import DenoiserBundle
from raydiff.diffusion.edm import karras_sigmas
from raydiff.diffusion.precision import in_precision
from raydiff.diffusion.samplers import network_calls, solver_of
from raydiff.generators.api import GeneratedTrajectories, action_agreement, keyed_generator
from raydiff.generators.pgd import churn_of
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
        if bundle.layout != "transition":
            raise ValueError(f"synther needs a denoiser of single transitions, not one of layout {bundle.layout!r}")
        self.bundle, self.sampler, self.device, self.delta = bundle.to(device), sampler, torch.device(device), delta
        self.denoise = in_precision(self.bundle.denoiser, sampler.precision)
        self.solver = solver_of(sampler.solver)
        self.sigmas = karras_sigmas(sampler.steps, sampler.sigma_min, sampler.sigma_max, sampler.rho)

    @torch.inference_mode()
    def generate(
        self, policy: ActionDistribution | None, n: int, key: tuple[int, ...], strength: float | None = None
    ) -> GeneratedTrajectories:
        """``n`` transitions as trajectories of two rows ``[n, 2, S+A+2]``. Nothing is guided: ``strength`` has no
        effect."""
        generator = keyed_generator(key, self.device)
        noise = torch.randn(n, 1, self.bundle.columns, generator=generator, device=self.device)
        x = self.solver(
            self.denoise,
            noise.mul_(self.sampler.sigma_max),
            self.sigmas,
            churn=churn_of(self.sampler),
            generator=generator,
        )
        rows = self.bundle.normalizer.decode(x)[:, 0].cpu().numpy()
        trajectories = as_trajectories(rows, self.bundle.observation_size, self.bundle.action_size)
        agreement = None if policy is None else action_agreement(trajectories, policy, self.device, self.delta)
        calls = network_calls(self.sampler.solver, self.sampler.steps)
        return GeneratedTrajectories(trajectories, calls, "none", 0.0, agreement)


def as_trajectories(rows: np.ndarray, observation_size: int, action_size: int) -> Trajectories:
    """Transitions ``rows [n, 2S+A+2]`` (observation | action | reward | terminal | next observation) as trajectories of
    one step."""
    columns = observation_size + action_size + 2
    pair = np.zeros((len(rows), 2, columns), dtype=np.float32)
    pair[:, 0] = rows[:, :columns]
    pair[:, 1, :observation_size] = rows[:, columns:]
    return Trajectories(pair, observation_size, action_size)
