"""Bring stored trajectories up to date: part of the way back to noise, then denoised under the current policy.

It costs the last part of the noise schedule only, and keeps what the noise did not wash out.
"""

from __future__ import annotations

import torch

from raydiff.config import GuidanceConfig, RefinerConfig, SamplerConfig
from raydiff.diffusion.bundle import DenoiserBundle
from raydiff.diffusion.edm import karras_sigmas
from raydiff.generators.api import GeneratedTrajectories, action_agreement, keyed_generator
from raydiff.generators.pgd import GuidedSampling
from raydiff.guidance.api import ActionDistribution
from raydiff.types import Trajectories


class Refresher:
    """Adds noise up to ``refiner.sigma`` and denoises in ``refiner.steps`` steps under the current policy's guidance.

    Churn and the published guidance schedule are those of the part of the schedule that is run, so that
    ``sigma = sampler.sigma_max`` is the same as generating anew. At ``sampler.sigma_min`` or below there is nothing
    to denoise, and the input is returned. Raises ``ValueError`` above ``sampler.sigma_max``.
    """

    def __init__(
        self,
        bundle: DenoiserBundle,
        sampler: SamplerConfig,
        guidance: GuidanceConfig,
        refiner: RefinerConfig,
        device: torch.device | str = "cpu",
    ) -> None:
        if refiner.sigma > sampler.sigma_max:
            raise ValueError(f"refiner.sigma={refiner.sigma:g} is above sampler.sigma_max={sampler.sigma_max:g}")
        self.sampling, self.refiner = GuidedSampling(bundle, sampler, guidance, device), refiner

    @torch.inference_mode()
    def refine(
        self,
        trajectories: Trajectories,
        policy: ActionDistribution | None,
        key: tuple[int, ...],
        strength: float | None = None,
    ) -> GeneratedTrajectories:
        """The same trajectories, nearer to what ``policy`` would do."""
        sampling, sampler, sigma = self.sampling, self.sampling.sampler, self.refiner.sigma
        if sigma <= sampler.sigma_min:
            delta = sampling.guidance.delta
            fit = None if policy is None else action_agreement(trajectories, policy, sampling.device, delta)
            return GeneratedTrajectories(trajectories, 0, "none", 0.0, fit)
        generator = keyed_generator(key, sampling.device)
        clean = sampling.bundle.normalizer.encode(torch.from_numpy(trajectories.rows).to(sampling.device))
        noise = torch.randn(clean.shape, generator=generator, device=sampling.device)
        sigmas = karras_sigmas(self.refiner.steps, sampler.sigma_min, sigma, sampler.rho)
        start = schedule_progress(sigma, sampler)
        return sampling.run(clean.add_(noise, alpha=sigma), sigmas, policy, generator, strength, start)


def schedule_progress(sigma: float, sampler: SamplerConfig) -> float:
    """Which share of the noise schedule lies above ``sigma``: 0 at ``sigma_max``, 1 at ``sigma_min``."""
    high, low, here = (level ** (1 / sampler.rho) for level in (sampler.sigma_max, sampler.sigma_min, sigma))
    return (high - here) / (high - low)
