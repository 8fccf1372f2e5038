"""What every generator that denoises has in common: a denoiser in its precision, a solver and its noise levels."""

from __future__ import annotations

import torch
from torch import Tensor

from raydiff.config import SamplerConfig
from raydiff.data.windows import Layout
from raydiff.diffusion.bundle import DenoiserBundle
from raydiff.diffusion.edm import karras_sigmas
from raydiff.diffusion.precision import in_precision
from raydiff.diffusion.samplers import Churn, network_calls, solver_of


class Sampling:
    """The configured sampler on one denoiser. Raises ``ValueError`` for a denoiser of another layout than ``layout``."""

    def __init__(
        self, bundle: DenoiserBundle, layout: Layout, sampler: SamplerConfig, device: torch.device | str
    ) -> None:
        if bundle.layout != layout:
            raise ValueError(f"a denoiser of layout {layout!r} is needed, not one of layout {bundle.layout!r}")
        self.bundle, self.sampler, self.device = bundle.to(device), sampler, torch.device(device)
        self.denoise = in_precision(self.bundle.denoiser, sampler.precision)
        self.solve = solver_of(sampler.solver)
        self.sigmas = karras_sigmas(sampler.steps, sampler.sigma_min, sampler.sigma_max, sampler.rho)

    def noise(self, n: int, generator: torch.Generator) -> Tensor:
        """``n`` windows of pure noise ``[n, L, C]`` at the largest noise level."""
        shape = (n, self.bundle.length, self.bundle.columns)
        return torch.randn(shape, generator=generator, device=self.device).mul_(self.sampler.sigma_max)

    def calls(self, steps: int | None = None) -> int:
        """Network calls per trajectory, without those of guidance; ``steps`` None: the configured ones."""
        return network_calls(self.sampler.solver, self.sampler.steps if steps is None else steps)


def churn_of(sampler: SamplerConfig, start: float = 0.0) -> Churn:
    """The configured fresh noise, of which a run that starts at ``start`` of the schedule gets its share."""
    return Churn(sampler.churn * (1.0 - start), sampler.churn_min, sampler.churn_max, sampler.churn_noise)
