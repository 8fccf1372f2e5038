"""Bring stored trajectories up to date: part of the way back to noise, then denoised under the current policy.

It costs the last part of the noise schedule only, and keeps what the noise did not wash out.
"""

from __future__ import annotations

import torch

from raydiff.config import GuidanceConfig, RefinerConfig, SamplerConfig
from raydiff.diffusion.bundle import DenoiserBundle
from raydiff.diffusion.edm import karras_sigmas
from raydiff.diffusion.guidance import ActionDistribution
from raydiff.diffusion.samplers import sample_heun
from raydiff.generators.api import GeneratedTrajectories, action_deviation, keyed_generator
from raydiff.generators.pgd import churn_of, describe, guide_of
from raydiff.types import Trajectories


@torch.inference_mode()
def refresh(
    bundle: DenoiserBundle,
    trajectories: Trajectories,
    policy: ActionDistribution | None,
    refiner: RefinerConfig,
    sampler: SamplerConfig,
    guidance: GuidanceConfig,
    key: tuple[int, ...],
) -> GeneratedTrajectories:
    """Add noise up to ``refiner.sigma`` and denoise in ``refiner.steps`` Heun steps guided towards ``policy``.

    Churn and the published guidance schedule are those of the part of the schedule that is run, so that
    ``sigma = sampler.sigma_max`` is the same as generating anew. At ``sampler.sigma_min`` or below there is nothing
    to denoise, and the input is returned. Raises ``ValueError`` above ``sampler.sigma_max``.
    """
    device = bundle.normalizer.mean.device
    if refiner.sigma > sampler.sigma_max:
        raise ValueError(f"refiner.sigma={refiner.sigma:g} is above sampler.sigma_max={sampler.sigma_max:g}")
    if refiner.sigma <= sampler.sigma_min:
        deviation = None if policy is None else action_deviation(trajectories, policy, device)
        return GeneratedTrajectories(trajectories, 0, "none", 0.0, deviation)
    generator = keyed_generator(key, device)
    clean = bundle.normalizer.encode(torch.from_numpy(trajectories.rows).to(device))
    noise = torch.randn(clean.shape, generator=generator, device=device)
    start = schedule_progress(refiner.sigma, sampler)
    x = sample_heun(
        bundle.denoiser,
        clean.add_(noise, alpha=refiner.sigma),
        karras_sigmas(refiner.steps, sampler.sigma_min, refiner.sigma, sampler.rho),
        churn=churn_of(sampler, start),
        guide=guide_of(bundle, guidance, policy, refiner.steps, start),
        generator=generator,
    )
    return describe(bundle, x, policy, guidance, refiner.steps, start)


def schedule_progress(sigma: float, sampler: SamplerConfig) -> float:
    """Which share of the noise schedule lies above ``sigma``: 0 at ``sigma_max``, 1 at ``sigma_min``."""
    high, low, here = (level ** (1 / sampler.rho) for level in (sampler.sigma_max, sampler.sigma_min, sigma))
    return (high - here) / (high - low)
