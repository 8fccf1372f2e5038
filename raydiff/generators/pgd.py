"""Whole trajectories from the diffusion model, guided towards the current policy (sections A.3, B and C)."""

from __future__ import annotations

import torch
from torch import Tensor

from raydiff.config import GuidanceConfig, SamplerConfig
from raydiff.diffusion.bundle import DenoiserBundle
from raydiff.diffusion.edm import karras_sigmas
from raydiff.diffusion.precision import in_precision
from raydiff.diffusion.samplers import Churn, network_calls, solver_of
from raydiff.generators.api import GeneratedTrajectories, action_agreement, keyed_generator
from raydiff.guidance.api import ActionDistribution
from raydiff.guidance.build import guidance_hooks
from raydiff.types import Trajectories


class GuidedSampling:
    """From normalised noise to trajectories: what generating anew and refreshing share.

    ``bundle`` is a denoiser of layout ``trajectory``; ``ValueError`` for another.
    """

    def __init__(
        self, bundle: DenoiserBundle, sampler: SamplerConfig, guidance: GuidanceConfig, device: torch.device | str
    ) -> None:
        if bundle.layout != "trajectory":
            raise ValueError(f"whole trajectories need a denoiser of them, not one of layout {bundle.layout!r}")
        self.bundle, self.sampler, self.guidance, self.device = (
            bundle.to(device),
            sampler,
            guidance,
            torch.device(device),
        )
        self.denoise = in_precision(self.bundle.denoiser, sampler.precision)
        self.solver = solver_of(sampler.solver)

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
        x = self.solver(
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
        calls = network_calls(self.sampler.solver, steps) + (hooks.calls(steps) if hooks else 0)
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
        self.sigmas = karras_sigmas(sampler.steps, sampler.sigma_min, sampler.sigma_max, sampler.rho)

    @torch.inference_mode()
    def generate(
        self, policy: ActionDistribution | None, n: int, key: tuple[int, ...], strength: float | None = None
    ) -> GeneratedTrajectories:
        """``n`` trajectories guided towards ``policy``, or unguided where it is None or the guidance is ``none``."""
        bundle, device = self.sampling.bundle, self.sampling.device
        generator = keyed_generator(key, device)
        noise = torch.randn(n, bundle.length, bundle.columns, generator=generator, device=device)
        return self.sampling.run(noise.mul_(self.sampling.sampler.sigma_max), self.sigmas, policy, generator, strength)


def churn_of(sampler: SamplerConfig, start: float = 0.0) -> Churn:
    """The configured fresh noise, of which a run that starts at ``start`` of the schedule gets its share."""
    return Churn(sampler.churn * (1.0 - start), sampler.churn_min, sampler.churn_max, sampler.churn_noise)
