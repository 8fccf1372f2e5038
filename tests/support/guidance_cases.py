"""Policies, critics and samplers in closed form for the tests of guidance, all in float64."""

from __future__ import annotations

import math
from itertools import pairwise

import torch

from raydiff.data.normalizer import TrajectoryNormalizer
from raydiff.diffusion.edm import karras_sigmas, per_trajectory
from raydiff.diffusion.exact import MixtureDenoiser
from raydiff.diffusion.samplers import Churn, solver_of
from raydiff.guidance.build import guidance_hooks

PGD = Churn(80, 0.05, 50, 1.003)
PLAIN = Churn(80, 0.05, 50, 1.0)
MODES = ["paper", "paper_code", "score", "score_exact"]
SOLVERS = ["heun", "heun_ode", "dpmpp_2m", "dpmpp_2m_sde"]


class GaussianPolicy:
    """Mean ``observation @ gain + bias`` and a constant variance, or a deterministic policy without one."""

    def __init__(self, bias, variance, gain=None):
        self.bias, self.variance, self.gain = bias, variance, gain
        self.deterministic = variance is None

    def distribution(self, observation):
        mean = self.bias.expand(*observation.shape[:-1], len(self.bias))
        if self.gain is not None:
            mean = mean + observation @ self.gain
        return mean, None if self.variance is None else self.variance.expand_as(mean)


def constant_policy(mean=1.0, variance=1.0, actions=1):
    full = lambda value: torch.full((actions,), value, dtype=torch.float64)  # noqa: E731
    return GaussianPolicy(full(mean), None if variance is None else full(variance))


class ValuedPolicy(GaussianPolicy):
    """A policy with the critic ``Q = slope . a - (a - centre) bend (a - centre) / 2``."""

    has_critic = True

    def __init__(self, slope, bend=None, centre=0.0):
        super().__init__(torch.zeros_like(slope), None)
        self.slope, self.centre = slope, centre
        self.bend = torch.zeros(len(slope), len(slope), dtype=slope.dtype) if bend is None else bend

    def value(self, observation, action):
        offset = action - self.centre
        return action @ self.slope - (offset @ self.bend * offset).sum(-1) / 2

    def value_gradient(self, observation, action):
        return self.slope - (action - self.centre) @ self.bend


def statistics(observations, actions, action_std=1.0, space="raw", action_mean=0.0):
    columns = observations + actions + 2
    mean, std = torch.zeros(columns, dtype=torch.float64), torch.ones(columns, dtype=torch.float64)
    std[observations : observations + actions] = action_std
    mean[observations : observations + actions] = action_mean
    return TrajectoryNormalizer(mean, std, observations, actions, space)


def random_case(space, seed=0, batch=3, length=4, observations=5, actions=2):
    """Statistics, a state-dependent policy with a variance for each action, noisy and denoised rows."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    columns = observations + actions + 2
    normalizer = TrajectoryNormalizer(draw(columns) * 0.3, draw(columns).abs() + 0.3, observations, actions, space)
    policy = GaussianPolicy(draw(actions) * 0.2, draw(actions).square() + 0.05, draw(observations, actions) * 0.1)
    return normalizer, policy, draw(batch, length, columns), draw(batch, length, columns)


def run(config, denoise, steps, batch, *, length=1, actions=1, policy=None, churn=PGD, normalizer=None, solver="heun"):
    """Guided samples of the action columns ``[batch, length, actions]``, normalised."""
    normalizer = normalizer or statistics(1, actions)
    policy = policy or constant_policy(actions=actions)
    hooks = guidance_hooks(normalizer, config, policy, steps, denoise=denoise)
    generator = torch.Generator().manual_seed(7)
    x = pure_noise(generator, batch, length, actions + 3)
    out = sample(solver, denoise, x, steps, churn, hooks, generator)
    return out[..., 1 : 1 + actions]


def pure_noise(generator, batch, *shape):
    """At sigma 80, in pairs of opposite sign, so that a mean over the batch is not that of a few lucky draws."""
    noise = 80 * torch.randn(batch // 2, *shape, generator=generator, dtype=torch.float64)
    return torch.cat([noise, -noise])


def sample(solver, denoise, x, steps, churn, hooks, generator, sigma_max=80):
    options = (
        dict(guide=hooks.guide, shift=hooks.shift, euler_from_unchurned=hooks.euler_from_unchurned) if hooks else {}
    )
    sigmas = karras_sigmas(steps, 0.002, sigma_max, 7)
    return solver_of(solver)(denoise, x, sigmas, churn=churn, generator=generator, **options)


def published_heun(denoise, x, sigmas, churn, hooks, generator):
    """The sampler of section A.3 with all hooks, written out on its own as a reference."""
    levels, steps = sigmas.tolist(), len(sigmas) - 1

    def denoised(x, level, step, corrector):
        value = denoise(x, x.new_full((1,), level))
        return (x, value) if hooks is None or hooks.guide is None else hooks.guide(x, level, value, step, corrector)

    for step, (sigma, target) in enumerate(pairwise(levels)):
        if hooks is not None and hooks.shift is not None:
            x = hooks.shift(x, sigma, step)
        gamma, before = churn.gamma(sigma, steps), x
        level = sigma * (1 + gamma)
        if gamma > 0:
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
            x = x + churn.noise * math.sqrt(level**2 - sigma**2) * noise
        x, value = denoised(x, level, step, False)
        slope = (x - value) / level
        start = before if hooks is not None and hooks.euler_from_unchurned else x
        ahead = start + (target - level) * slope
        if target > 0:
            shifted, value = denoised(ahead, target, step, True)
            ahead = x + (target - level) / 2 * (slope + (shifted - value) / target)
        x = ahead
    return x


class MixtureActions:
    """Each action from two Gaussians at +-1 (std .2), standardised; the other columns standard normal."""

    spread = math.sqrt(1.04)

    def __init__(self, actions):
        self.columns = slice(1, 1 + actions)
        means = torch.tensor([[1.0], [-1.0]], dtype=torch.float64) / self.spread
        half = torch.tensor([0.5, 0.5], dtype=torch.float64)
        self.mixture = MixtureDenoiser(means, torch.full((2,), 0.2, dtype=torch.float64) / self.spread, half)

    def __call__(self, x, sigma):
        denoised = x / (1 + per_trajectory(sigma, x).square())
        actions = x[..., self.columns]
        denoised[..., self.columns] = self.mixture(actions.reshape(-1, 1), sigma).reshape(actions.shape)
        return denoised
