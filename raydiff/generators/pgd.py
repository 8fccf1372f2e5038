"""Whole trajectories from the diffusion model, guided towards the current policy (sections A.3, B and C)."""

from __future__ import annotations

import torch
from torch import Tensor

from raydiff.config import GuidanceConfig, SamplerConfig
from raydiff.diffusion.bundle import DenoiserBundle
from raydiff.generators.api import GeneratedTrajectories, action_agreement, keyed_generator
from raydiff.generators.sampling import Sampling, churn_of
from raydiff.guidance.api import ActionDistribution
from raydiff.guidance.build import guidance_hooks
from raydiff.types import Trajectories


class GuidedSampling(Sampling):
    """From normalised noise to trajectories: what generating anew and refreshing share."""

    def __init__(
        self, bundle: DenoiserBundle, sampler: SamplerConfig, guidance: GuidanceConfig, device: torch.device | str
    ) -> None:
        super().__init__(bundle, "trajectory", sampler, device)
        self.guidance = guidance

    def run(
        self,
        x: Tensor,
        sigmas: Tensor,
        policy: ActionDistribution | None,
        generator: torch.Generator,
        strength: float | None = None,
        start: float = 0.0,
    ) -> GeneratedTrajectories:
        """Denoise ``x [n, L, C]`` from ``sigmas[0]`` on, ``start`` of the way through the noise schedule; ``strength``
        None: the configured one."""
        guidance, steps = self.guidance, len(sigmas) - 1
        if strength is not None:
            guidance = guidance.model_copy(update={"strength": strength})
        hooks = guidance_hooks(self.bundle.normalizer, guidance, policy, steps, start=start, denoise=self.denoise)
        x = self.solve(
            self.denoise,
            x,
            sigmas,
            churn=churn_of(self.sampler, start),
            guide=hooks.guide if hooks else None,
            shift=hooks.shift if hooks else None,
            euler_from_unchurned=hooks.euler_from_unchurned if hooks else False,
            generator=generator,
        )
        rows = self.bundle.normalizer.decode(x).cpu().numpy()
        made = Trajectories(rows, self.bundle.observation_size, self.bundle.action_size)
        fit = None if policy is None else action_agreement(made, policy, self.device, guidance.delta)
        calls = self.calls(steps) + (hooks.calls(steps) if hooks else 0)
        return GeneratedTrajectories(
            made, calls, hooks.name if hooks else "none", hooks.strength if hooks else 0.0, fit
        )


class TrajectoryGenerator:
    """Samples from pure noise. Keeps no state between calls, so equal calls give equal bytes."""

    def __init__(
        self,
        bundle: DenoiserBundle,
        sampler: SamplerConfig,
        guidance: GuidanceConfig,
        device: torch.device | str = "cpu",
    ) -> None:
        self.sampling = GuidedSampling(bundle, sampler, guidance, device)

    @torch.inference_mode()
    def generate(
        self, policy: ActionDistribution | None, n: int, key: tuple[int, ...], strength: float | None = None
    ) -> GeneratedTrajectories:
        """``n`` trajectories guided towards ``policy``, or unguided where it is None or the guidance is ``none``."""
        sampling = self.sampling
        generator = keyed_generator(key, sampling.device)
        return sampling.run(sampling.noise(n, generator), sampling.sigmas, policy, generator, strength)
