"""Variance-preserving diffusion of vectors: schedules, noise loss and samplers (section 0.5).

A noisy sample is ``x_t = alpha(t) x_0 + sigma(t) eps`` with ``alpha^2 + sigma^2 = 1``. The predictor estimates ``eps``.
Everything works in the dtype and on the device of its inputs; only the schedule itself is computed in float64.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from raydiff.diffusion.edm import per_trajectory

Predict = Callable[[Tensor, Tensor], Tensor]
"""``predict(x_t [B, ...], t [B]) -> eps [B, ...]``."""

Guide = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``guide(x_t [B, ...], t [B], eps [B, ...]) -> eps [B, ...]``: the prediction, changed."""

Clip = Callable[[Tensor], Tensor]
"""``clip(x_0 [B, ...]) -> x_0``: keeps a denoised value within its bounds."""

Schedule = Literal["discrete", "cosine", "continuous"]
Solver = Literal["ddpm", "ddim", "dpmpp_2m", "dpmpp_2m_sde"]

FIRST_TIME = 1e-3
DISCRETE_BETAS = (0.1, 10.0)
CONTINUOUS_BETAS = (0.1, 20.0)
COSINE_OFFSET = 0.008
COSINE_LEAST = 1e-3  # no step of the cosine schedule keeps less of alpha^2: beta is clipped to .999


@dataclass(frozen=True)
class VP:
    """A noise schedule. ``steps`` is T of the kinds with integer times 1 to T, 0 being clean.

    ``discrete`` is Diffusion-QL's, whose last level does not depend on T (``alpha^2 = e^-5.05``); ``cosine`` that of
    Nichol and Dhariwal (2021); ``continuous``, with times from 1e-3 to 1, the linear schedule of Song et al. (2021).
    """

    kind: Schedule = "discrete"
    steps: int = 5

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"a schedule has at least one step, got {self.steps}")

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """``(alpha, sigma)``, each of the shape and dtype of ``t`` (integers: float32). Time 0 gives ``(1, 0)``."""
        log_alpha = self._log_alpha(t.double())
        dtype = t.dtype if t.is_floating_point() else torch.float32
        return log_alpha.exp().to(dtype), (-torch.expm1(2 * log_alpha)).sqrt().to(dtype)

    def _log_alpha(self, t: Tensor) -> Tensor:
        match self.kind:
            case "discrete":  # the sum of the logarithms of the single steps, halved
                low, high = DISCRETE_BETAS
                share = t / self.steps
                return -(low * share + (high - low) * share.square() / 2) / 2
            case "cosine":
                start, before_last = self._cosine(0.0), self._cosine((self.steps - 1) / self.steps)
                angle = (t / self.steps + COSINE_OFFSET) / (1 + COSINE_OFFSET) * (math.pi / 2)
                kept = angle.cos().square() / start
                return kept.clamp(COSINE_LEAST * before_last / start, 1.0).log() / 2
            case "continuous":
                low, high = CONTINUOUS_BETAS
                return -t.square() * (high - low) / 4 - t * low / 2

    @staticmethod
    def _cosine(share: float) -> float:
        return math.cos((share + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2) ** 2

    def draw(
        self, n: int, generator: torch.Generator, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Uniform training times ``[n]``, as floats also where they are whole numbers."""
        if self.kind == "continuous":
            uniform = torch.rand(n, generator=generator, device=device, dtype=dtype)
            return uniform * (1 - FIRST_TIME) + FIRST_TIME
        return torch.randint(1, self.steps + 1, (n,), generator=generator, device=device).to(dtype)

    def grid(self, steps: int) -> Tensor:
        """Decreasing times ``[steps + 1]`` of a sampler in float64: from pure noise to the first level, evenly in
        ``log(alpha / sigma)``, and then 0.

        Where times are whole numbers they are the nearest that differ, and all of them for T steps. Raises
        ``ValueError`` when there are fewer than ``steps``.
        """
        if steps < 1:
            raise ValueError(f"a sampler takes at least one step, got {steps}")
        if self.kind == "continuous":
            ends = torch.tensor([1.0, FIRST_TIME], dtype=torch.float64)
            times = self._time(_even(self._log_ratio(ends), steps))
            times[-1], times[0] = ends[1], ends[0]  # to the last bit
        elif steps > self.steps:
            raise ValueError(f"{steps} sampler steps need as many noise levels, but the schedule has {self.steps}")
        else:
            times = self._nearest(steps)
        return torch.cat([times, times.new_zeros(1)])

    def _log_ratio(self, t: Tensor) -> Tensor:
        """``log(alpha / sigma)`` at ``t`` in float64."""
        log_alpha = self._log_alpha(t)
        return log_alpha - (-torch.expm1(2 * log_alpha)).log() / 2

    @staticmethod
    def _time(log_ratio: Tensor) -> Tensor:
        """The time of the continuous schedule at which ``log(alpha / sigma)`` is so: the root of a quadratic."""
        low, high = CONTINUOUS_BETAS
        depth = torch.log1p((-2 * log_ratio).exp()) / 2  # minus log(alpha)
        return 2 * depth / (low / 2 + ((low / 2) ** 2 + (high - low) * depth).sqrt())

    def _nearest(self, steps: int) -> Tensor:
        ratios = self._log_ratio(torch.arange(1, self.steps + 1, dtype=torch.float64))
        wanted = _even(ratios[[-1, 0]], steps)
        times = ((ratios[None] - wanted[:, None]).abs().argmin(1) + 1).tolist()
        for index in range(steps - 2, -1, -1):
            times[index] = max(times[index], times[index + 1] + 1)
        return torch.tensor([min(t, self.steps - index) for index, t in enumerate(times)], dtype=torch.float64)


def _even(ends: Tensor, steps: int) -> Tensor:
    """``steps`` evenly spaced values between two, the first of them where it is one."""
    return torch.lerp(ends[0], ends[1], torch.arange(steps, dtype=ends.dtype) / max(steps - 1, 1))


class Noised(NamedTuple):
    """A batch at random noise levels: ``x [B, ...]``, times ``t [B]``, ``noise [B, ...]``, and ``alpha`` and ``sigma``
    ``[B, 1, ...]``."""

    x: Tensor
    t: Tensor
    noise: Tensor
    alpha: Tensor
    sigma: Tensor


def add_noise(x0: Tensor, vp: VP, generator: torch.Generator) -> Noised:
    """``x_t = alpha x_0 + sigma eps`` for clean ``x0 [B, ...]``, a uniform time for each row."""
    t = vp.draw(len(x0), generator, x0.device, x0.dtype)
    alpha, sigma = (per_trajectory(level, x0) for level in vp.levels(t))
    noise = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
    return Noised(alpha * x0 + sigma * noise, t, noise, alpha, sigma)


def noise_loss(
    predict: Predict, x0: Tensor, vp: VP, generator: torch.Generator, weight: Tensor | None = None
) -> Tensor:
    """Squared error ``[B, ...]`` of the predicted noise at random times, for clean ``x0 [B, ...]`` (Ho et al. 2020,
    equation 14), not reduced; times ``weight [B]`` where given."""
    noised = add_noise(x0, vp, generator)
    squared = (predict(noised.x, noised.t) - noised.noise).square()
    return squared if weight is None else squared * per_trajectory(weight, squared)


def sample(
    predict: Predict,
    x_T: Tensor,
    vp: VP,
    solver: Solver,
    steps: int,
    *,
    temperature: float = 1.0,
    guide: Guide | None = None,
    clip: Clip | None = None,
    generator: torch.Generator | None = None,
    differentiable: bool = False,
) -> Tensor:
    """``x_0 [B, ...]`` from noise ``x_T [B, ...]`` in ``steps`` steps, one prediction each.

    ``ddpm``: the posterior of each step given the denoised value (Ho et al. 2020, equations 6 and 7, with the variance
    of equation 7). ``ddim``: Song et al. (2021), equation 12 with no noise. ``dpmpp_2m``, ``dpmpp_2m_sde``: multistep
    DPM-Solver++ of order 2 (Lu et al. 2022, algorithm 2 and its SDE form). The first are the first-order case of the
    last two, so one formula serves all four: with ``h`` the step in ``log(alpha / sigma)``,
    ``x' = (sigma'/sigma) e^-qh x + alpha' (1 - e^-(1+q)h) D + sigma' sqrt(1 - e^-2qh) z``, ``q`` 1 with noise, else 0.

    ``temperature`` scales the noise ``z`` of the steps; 0 follows the path of means. ``x_T`` is used as given.
    ``guide`` changes predictions, ``clip`` denoised values. Gradients are recorded with ``differentiable`` only; a
    guide may enable them for itself.
    """
    with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
        return _sample(predict, x_T, vp, solver, steps, temperature, guide, clip, generator)


@torch.compiler.assume_constant_result
def _plan(kind: Schedule, levels: int, steps: int) -> list[tuple[float, float, float]]:
    """Time, ``alpha`` and ``sigma`` of the sampler's grid: numbers, to the compiler too."""
    return _computed_plan(kind, levels, steps)


@functools.lru_cache
def _computed_plan(kind: Schedule, levels: int, steps: int) -> list[tuple[float, float, float]]:
    vp = VP(kind, levels)
    grid = vp.grid(steps)
    return list(zip(*(part.tolist() for part in (grid, *vp.levels(grid))), strict=True))


def _sample(
    predict: Predict,
    x: Tensor,
    vp: VP,
    solver: Solver,
    steps: int,
    temperature: float,
    guide: Guide | None,
    clip: Clip | None,
    generator: torch.Generator | None,
) -> Tensor:
    noisy, second = solver in ("ddpm", "dpmpp_2m_sde"), solver in ("dpmpp_2m", "dpmpp_2m_sde")
    before: tuple[Tensor, float] | None = None  # the last denoised value, and the step that followed it
    for (time, alpha, sigma), (_, alpha_next, sigma_next) in itertools.pairwise(_plan(vp.kind, vp.steps, steps)):
        denoised = _denoise(predict, x, time, alpha, sigma, guide, clip)
        if sigma_next == 0:
            return denoised
        h = math.log(alpha_next / sigma_next) - math.log(alpha / sigma)
        target = denoised
        if second and before is not None:
            target = denoised + (denoised - before[0]) * (h / (2 * before[1]))
        before = (denoised, h)
        kept = sigma_next / sigma * (math.exp(-h) if noisy else 1.0)
        x = kept * x - alpha_next * math.expm1(-2 * h if noisy else -h) * target
        if noisy and temperature > 0:
            noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            x = x + noise * (temperature * sigma_next * math.sqrt(-math.expm1(-2 * h)))
    raise AssertionError("the last time of a grid is clean")


def _denoise(
    predict: Predict, x: Tensor, time: float, alpha: float, sigma: float, guide: Guide | None, clip: Clip | None
) -> Tensor:
    """``(x - sigma eps) / alpha`` with the guided prediction, clipped."""
    t = x.new_full((len(x),), time)
    noise = predict(x, t)
    if guide is not None:
        noise = guide(x, t, noise)
    denoised = (x - sigma * noise) / alpha
    return denoised if clip is None else clip(denoised)
