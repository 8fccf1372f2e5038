"""Solvers of the reverse diffusion, as pure functions of one shape with the same hooks (section A.3, corrected form).

Guidance and conditioning are hooks, so the same loops generate from pure noise, refresh stored trajectories from
an intermediate noise level, and run against exact denoisers in the tests.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
"""``denoise(x [B, ...], sigma [1]) -> E[y | x] [B, ...]``."""

Guide = Callable[[Tensor, float, Tensor, int, bool], tuple[Tensor, Tensor]]
"""``guide(x, sigma, denoised, step, corrector) -> (x, denoised)``. A score term ``G`` returns ``denoised + sigma^2 G``;
a displacement of the sample that leaves the slope as it is returns both arguments shifted."""

Shift = Callable[[Tensor, float, int], Tensor]
"""``shift(x, sigma, step) -> x``: moves the sample before the fresh noise of a step and before its denoising."""

Replace = Callable[[Tensor, float], Tensor]
"""``replace(x, sigma) -> x`` with the conditioned entries overwritten for noise level ``sigma`` (0 at the end)."""


@dataclass(frozen=True)
class Churn:
    """Fresh noise during sampling: ``S_churn`` (0: deterministic), ``S_tmin``, ``S_tmax`` and ``S_noise``."""

    amount: float = 0.0
    sigma_min: float = 0.0
    sigma_max: float = math.inf
    noise: float = 1.0

    def gamma(self, sigma: float, steps: int) -> float:
        """Relative increase of the noise level before a step at ``sigma``."""
        if not self.sigma_min <= sigma <= self.sigma_max:
            return 0.0
        return min(self.amount / steps, math.sqrt(2.0) - 1.0)


@dataclass(frozen=True)
class _Run:
    """One call of a solver: its noise levels and its hooks, each of which leaves the sample alone where it is None."""

    denoise: Denoise
    levels: list[float]
    churn: Churn
    guide: Guide | None
    shift: Shift | None
    euler_from_unchurned: bool
    generator: torch.Generator | None
    replace: Replace | None
    replace_after_churn: bool

    def denoised(self, x: Tensor, sigma: float, step: int, corrector: bool = False) -> tuple[Tensor, Tensor]:
        """The sample and its denoised value, both guided."""
        value = self.denoise(x, x.new_full((1,), sigma))
        return (x, value) if self.guide is None else self.guide(x, sigma, value, step, corrector)

    def held(self, x: Tensor, sigma: float) -> Tensor:
        """The sample with its conditions."""
        return x if self.replace is None else self.replace(x, sigma)

    def shifted(self, x: Tensor, sigma: float, step: int) -> Tensor:
        """The sample displaced before a step, with its conditions."""
        return x if self.shift is None else self.held(self.shift(x, sigma, step), sigma)

    def noise(self, x: Tensor) -> Tensor:
        """Standard normal noise like ``x``."""
        if self.generator is None:
            raise ValueError("this solver draws noise, so it needs a generator")
        return torch.randn(x.shape, generator=self.generator, device=x.device, dtype=x.dtype)


class Solver(ABC):
    """Denoises ``x [B, ...]``, already at noise level ``sigmas[0]``, along ``sigmas [N + 1]`` (decreasing, ending in 0).

    Works in the dtype of ``x``. Noise is drawn from ``generator`` only; ``ValueError`` where some is due without it.
    The conditioned entries of ``replace`` are overwritten before every network call and at the end (section A.5b).
    ``churn`` is used by ``heun`` alone, and with it two flags that reproduce published code:
    ``euler_from_unchurned``, PGD's first-order step from the sample without the fresh noise (section A.3, note 5), and
    ``replace_after_churn=False``, DyDiff's conditions with the fresh noise in them (section D.4).
    """

    @torch.no_grad()
    def __call__(
        self,
        denoise: Denoise,
        x: Tensor,
        sigmas: Tensor,
        *,
        churn: Churn | None = None,
        guide: Guide | None = None,
        shift: Shift | None = None,
        euler_from_unchurned: bool = False,
        generator: torch.Generator | None = None,
        replace: Replace | None = None,
        replace_after_churn: bool = True,
    ) -> Tensor:
        run = _Run(
            denoise,
            sigmas.tolist(),
            churn or Churn(),
            guide,
            shift,
            euler_from_unchurned,
            generator,
            replace,
            replace_after_churn,
        )
        return self._solve(run, run.held(x, run.levels[0]))

    @abstractmethod
    def calls(self, steps: int) -> int:
        """Network calls per trajectory of ``steps`` steps, without those of the hooks."""

    @abstractmethod
    def _solve(self, run: _Run, x: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Heun(Solver):
    """EDM's second-order sampler (Karras et al. 2022), with its fresh noise (algorithm 2) or without (algorithm 1)."""

    churned: bool

    def calls(self, steps: int) -> int:
        return 2 * steps - 1  # the last step, to sigma 0, has no corrector

    def _solve(self, run: _Run, x: Tensor) -> Tensor:
        steps = len(run.levels) - 1
        for step, (sigma, target) in enumerate(pairwise(run.levels)):
            start = x = run.shifted(x, sigma, step)
            gamma = run.churn.gamma(sigma, steps) if self.churned else 0.0
            level = sigma * (1.0 + gamma)
            offset: Tensor | None = None
            if gamma > 0.0:
                x = x.add(run.noise(x), alpha=run.churn.noise * math.sqrt(level**2 - sigma**2))
                if run.replace_after_churn:
                    x = run.held(x, level)
                if run.euler_from_unchurned:
                    offset = start - x
            x = _heun_step(run, x, level, target, step, offset)
        return x


def _heun_step(run: _Run, x: Tensor, level: float, target: float, step: int, offset: Tensor | None) -> Tensor:
    """From noise ``level`` to ``target``: Euler, started at ``x + offset``, then the trapezoidal correction unless
    ``target`` is 0."""
    x, denoised = run.denoised(x, level, step)
    # The Euler step x + (target - level) * (x - D) / level, written as the interpolation that it is.
    ahead = torch.lerp(denoised, x, target / level)
    if offset is not None:
        ahead = ahead.add_(offset)
    ahead = run.held(ahead, target)
    if target == 0.0:
        return ahead
    corrected, denoised_ahead = run.denoised(ahead, target, step, corrector=True)
    half = (target - level) / 2
    # x + half * (slope + slope_ahead), with slope = (x - D) / level
    result = x.add(x - denoised, alpha=half / level).add_(corrected - denoised_ahead, alpha=half / target)
    return run.held(result, target)


@dataclass(frozen=True)
class Multistep(Solver):
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), or with ``stochastic`` its form for the reverse stochastic
    differential equation, whose noise is part of the equation: one network call a step.

    The denoised value is extrapolated to the middle of the step, in the logarithm of sigma, from that of the step
    before. The first step and the last, whose length is infinite in it, are of first order.
    """

    stochastic: bool

    def calls(self, steps: int) -> int:
        return steps

    def _solve(self, run: _Run, x: Tensor) -> Tensor:
        previous: Tensor | None = None
        last_length = 0.0
        for step, (sigma, target) in enumerate(pairwise(run.levels)):
            x, denoised = run.denoised(run.shifted(x, sigma, step), sigma, step)
            aim = denoised
            if target > 0.0:
                length = math.log(sigma / target)
                if previous is not None:
                    aim = torch.lerp(previous, denoised, 1.0 + length / (2.0 * last_length))
                last_length = length
            kept = target / sigma
            if self.stochastic:
                kept = kept**2
            x = torch.lerp(aim, x, kept)
            if self.stochastic and target > 0.0:
                x = x.add_(run.noise(x), alpha=target * math.sqrt(1.0 - kept))
            x, previous = run.held(x, target), denoised
        return x


sample_heun = Heun(churned=True)

SOLVERS: dict[str, Solver] = {
    "heun": sample_heun,
    "heun_ode": Heun(churned=False),
    "dpmpp_2m": Multistep(stochastic=False),
    "dpmpp_2m_sde": Multistep(stochastic=True),
}


def solver_of(name: str) -> Solver:
    """The solver that ``sampler.solver`` names; ``KeyError`` for another name."""
    return SOLVERS[name]


def network_calls(name: str, steps: int) -> int:
    """Network calls per trajectory of ``steps`` steps, without those of guidance; ``KeyError`` for an unknown solver."""
    return SOLVERS[name].calls(steps)


def hold(mask: Tensor, values: Tensor, noise: Tensor | None = None) -> Replace:
    """A ``replace`` hook that keeps the entries where ``mask`` is true at ``values`` (both broadcast against ``x``).

    Without ``noise`` they are clean at every level, which is exact for a denoiser trained with clean conditions. For
    an unconditional denoiser pass ``noise`` (standard normal): the entries are then ``values + sigma * noise``.
    """

    def replace(x: Tensor, sigma: float) -> Tensor:
        wanted = values if noise is None or sigma == 0.0 else values + sigma * noise
        return torch.where(mask, wanted, x)

    return replace
