"""Exact and random models for the tests of DyDiff: a linear system, and networks of random weights."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace

import numpy as np
import torch

from raydiff.config import Config, DenoiserConfig, DyDiffConfig, NetworkConfig, SamplerConfig
from raydiff.data.normalizer import TrajectoryNormalizer
from raydiff.diffusion.bundle import DenoiserBundle
from raydiff.diffusion.exact import LinearSystemDenoiser
from raydiff.diffusion.training_set import build_denoiser
from raydiff.dynamics.ensemble import GaussianEnsemble
from raydiff.dynamics.reward import RewardModel
from raydiff.generators.dydiff import DyDiffGenerator

S, A, L = 11, 3, 6  # Hopper's sizes
SOLVERS = ["heun", "heun_ode", "dpmpp_2m", "dpmpp_2m_sde"]
STATES, ACTIONS = slice(0, S), slice(S, S + A)


class Units:
    """A normaliser with a known affine map; the output of the sampler stays visible in ``decoded``."""

    mean = torch.zeros(1)

    def encode(self, rows):
        return (rows - 0.25) * 2.0

    def decode(self, x):
        self.decoded = x
        return x / 2.0 + 0.25


class InUnits:
    """A denoiser of encoded rows, from one of rows in environment units."""

    def __init__(self, model, units):
        self.model, self.units = model, units

    def __call__(self, x, sigma):
        return self.units.encode(self.model(x / 2.0 + 0.25, sigma / 2))


def linear_system(noise):
    """The first two states, by which Hopper terminates, decay by themselves; the others turn and decay."""
    generator = torch.Generator().manual_seed(0)
    turn = 0.7 * torch.linalg.qr(torch.randn(S - 2, S - 2, generator=generator))[0]
    transition = torch.block_diag(torch.tensor([[0.85]]), torch.tensor([[0.5]]), turn)
    control = 0.3 * torch.randn(S, A, generator=generator)
    control[:2] *= 0.05
    return transition, control, noise * torch.eye(S)


class LinearEnsemble:
    """A one-step model of another system, with the interface of the ensemble."""

    def __init__(self):
        self.samples = []

    def to(self, device):
        return self

    def step(self, observation, action, generator, *, sample):
        self.samples.append(sample)
        noise = torch.randn(observation.shape, generator=generator) if sample else 0.0
        return 0.9 * observation + 0.1 * action.mean(-1, keepdim=True) + 0.01 * noise, observation[:, 0], None


class LinearPolicy:
    def __init__(self, std=None):
        self.std, self.deterministic = std, std is None

    def distribution(self, observation):
        mean = (0.4 * observation[..., :A] - 0.1).tanh()
        return mean, None if self.std is None else torch.full_like(mean, self.std**2)


def starts_of(count=50, seed=0):
    return np.random.default_rng(seed).normal(0.3, 0.4, (count, S)).astype(np.float32)


SAMPLER = SamplerConfig(steps=6, churn=5, sigma_min=0.002, sigma_max=80.0)


def make(environment="HalfCheetah-v4", noise=0.0, starts=None, layout="conditional", **sections):
    """A generator on an exact conditional model of a linear system, with a reward model of random weights."""
    units, system = Units(), linear_system(noise)
    bundle = SimpleNamespace(
        layout=layout, denoiser=InUnits(LinearSystemDenoiser(*system, L), units), normalizer=units, length=L,
        observation_size=S, action_size=A, columns=S + A,
    )  # fmt: skip
    bundle.to = lambda device: bundle
    starts = starts_of() if starts is None else starts
    values = {"sampler": SAMPLER, "dydiff": DyDiffConfig(iterations=2)} | sections
    return DyDiffGenerator(bundle, LinearEnsemble(), reward_model(), starts, environment, Config(**values))


def reward_model():
    return RewardModel(2 * S + A, (16,), torch.Generator().manual_seed(1)).eval()


def make_networks(environment="HalfCheetah-v4", clean=True, **sections):
    """The same with networks of random weights for all models."""
    config = DenoiserConfig(network=NetworkConfig(width=16, depth=1), length=L, clean_conditions=clean)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        denoiser = build_denoiser(config, "conditional", L, S, A).eval().requires_grad_(False)
        torch.nn.init.normal_(denoiser.network.output.weight, std=0.3)
    rows = np.random.default_rng(2).uniform(-1, 1, (500, S + A)).astype(np.float32)
    normalizer = TrajectoryNormalizer.fit_extremes(rows, S, A)
    bundle = DenoiserBundle(denoiser, normalizer, L, S, A, "test", config, "conditional")
    ensemble = GaussianEnsemble(S, A, 3, (16,), torch.Generator().manual_seed(3)).eval()
    values = {"sampler": SAMPLER, "dydiff": DyDiffConfig(iterations=2)} | sections
    return DyDiffGenerator(bundle, ensemble, reward_model(), starts_of(), environment, Config(**values))


def digest(rows):
    return hashlib.sha256(np.ascontiguousarray(rows).tobytes()).hexdigest()


def rows_of(generator, n=64, policy=None, key=(1, 2, 3)):
    return generator.generate(policy or LinearPolicy(), n, key).trajectories.rows
