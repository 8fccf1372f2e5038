"""Whole trajectories from the diffusion model, guided towards the current policy (sections A.3, B and C)."""

from __future__ import annotations

import torch

from raydiff.config import GuidanceConfig, SamplerConfig
from raydiff.diffusion.bundle import DenoiserBundle
from raydiff.diffusion.edm import karras_sigmas
from raydiff.diffusion.guidance import REFERENCE_STEPS, ActionDistribution, PolicyGuidance
from raydiff.diffusion.samplers import Churn, nfe, sample_heun
from raydiff.generators.api import GeneratedTrajectories, action_deviation, keyed_generator
from raydiff.types import Trajectories


class TrajectoryGenerator:
    """Samples from pure noise. Keeps no state between calls, so equal calls give equal bytes."""

    def __init__(
        self,
        bundle: DenoiserBundle,
        sampler: SamplerConfig,
        guidance: GuidanceConfig,
        device: torch.device | str = "cpu",
    ) -> None:
        self.bundle = bundle.to(device)
        self.sampler, self.guidance, self.device = sampler, guidance, torch.device(device)
        self.sigmas = karras_sigmas(sampler.steps, sampler.sigma_min, sampler.sigma_max, sampler.rho)

    @torch.inference_mode()
    def generate(self, policy: ActionDistribution | None, n: int, key: tuple[int, ...]) -> GeneratedTrajectories:
        """``n`` trajectories guided towards ``policy``, or unguided where it is None or the guidance is ``none``."""
        bundle, generator = self.bundle, keyed_generator(key, self.device)
        noise = torch.randn(n, bundle.length, bundle.columns, generator=generator, device=self.device)
        x = sample_heun(
            bundle.denoiser,
            noise.mul_(self.sampler.sigma_max),
            self.sigmas,
            churn=churn_of(self.sampler),
            guide=guide_of(bundle, self.guidance, policy, self.sampler.steps),
            generator=generator,
        )
        return describe(bundle, x, policy, self.guidance, self.sampler.steps)


def churn_of(sampler: SamplerConfig, start: float = 0.0) -> Churn:
    """The configured fresh noise, of which a run that starts at ``start`` of the schedule gets its share."""
    return Churn(sampler.churn * (1.0 - start), sampler.churn_min, sampler.churn_max, sampler.churn_noise)


def is_guided(config: GuidanceConfig, policy: ActionDistribution | None) -> bool:
    return policy is not None and config.kind == "policy" and config.strength > 0.0


def guide_of(
    bundle: DenoiserBundle, config: GuidanceConfig, policy: ActionDistribution | None, steps: int, start: float = 0.0
) -> PolicyGuidance | None:
    """The guidance hook, or None where nothing is to be guided."""
    if policy is None or not is_guided(config, policy):
        return None
    return PolicyGuidance(policy, bundle.normalizer, config, steps, start=start)


def describe(
    bundle: DenoiserBundle,
    x: torch.Tensor,
    policy: ActionDistribution | None,
    config: GuidanceConfig,
    steps: int,
    start: float = 0.0,
) -> GeneratedTrajectories:
    """Sampler output ``x [n, L, C]`` as trajectories in environment units, with how they came about."""
    rows = bundle.normalizer.decode(x).cpu().numpy()
    trajectories = Trajectories(rows, bundle.observation_size, bundle.action_size)
    name, strength = "none", 0.0
    if is_guided(config, policy):
        scale = REFERENCE_STEPS * (1.0 - start) / steps if config.mode == "paper" else 1.0
        name, strength = config.mode, config.strength * scale
    deviation = None if policy is None else action_deviation(trajectories, policy, bundle.normalizer.mean.device)
    return GeneratedTrajectories(trajectories, nfe(steps), name, strength, deviation)
