"""Single transitions: their distribution (C1, C2 of section C), their form and their bytes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from raydiff.config import Config, DenoiserConfig, NetworkConfig, SamplerConfig
from raydiff.data.dataset import Dataset
from raydiff.data.normalizer import TrajectoryNormalizer
from raydiff.diffusion.bundle import DenoiserBundle
from raydiff.diffusion.exact import AtomDenoiser, MixtureDenoiser
from raydiff.diffusion.pretrain import pretrain
from raydiff.diffusion.training_set import build_denoiser, training_windows
from raydiff.generators.synther import TransitionGenerator, as_trajectories
from raydiff.types import Transitions

S, A = 1, 1
PUBLISHED = {"sigma_min": 0.002, "sigma_max": 80.0}


class Exact(nn.Module):
    """A closed-form denoiser of vectors in the place of a network's, for windows of one row."""

    def __init__(self, denoise):
        super().__init__()
        self.denoise = denoise

    def forward(self, x, sigma):
        return self.denoise(x[:, 0], sigma)[:, None]


def mixture():
    """Columns s, a, r, d, s': modes of transitions that go on and one of terminals."""
    means = torch.tensor([[-1.0, 0.5, 0.3, 0.0, -0.6], [1.0, -0.8, 1.2, 0.0, 0.9], [2.0, 0.2, -1.0, 1.0, 2.5]])
    return means, torch.tensor([0.3, 0.2, 0.1]), torch.tensor([0.6, 0.33, 0.07])


SCALE = torch.tensor([1.0, 0.2, 3.0, 1.0, 1.0])


def exact_bundle(denoise=None):
    normalizer = TrajectoryNormalizer(torch.zeros(5), SCALE, S, A, "raw")
    denoiser = Exact(denoise or MixtureDenoiser(*mixture()))
    return DenoiserBundle(denoiser, normalizer, 1, S, A, "exact", DenoiserConfig(), "transition")


class Policy:
    def __init__(self, deterministic):
        self.deterministic = deterministic

    def distribution(self, observation):
        mean = (observation[..., :A] * 0.1).tanh()
        return mean, None if self.deterministic else torch.full_like(mean, 0.05)


def events(bundle, steps, n=20_000):
    """Generated transitions ``[n, 5]`` in the units of the denoiser."""
    made = TransitionGenerator(bundle, SamplerConfig(steps=steps, churn=0, **PUBLISHED)).generate(None, n, (1, 2))
    rows = made.trajectories.rows.astype(np.float64)
    assert (rows[:, 1, S:] == 0).all(), "of the closing row only the observation is used"
    return np.concatenate([rows[:, 0, :4], rows[:, 1, :S]], axis=1) / SCALE.numpy()


def test_c1_mean_and_covariance_of_a_mixture():
    means, std, weights = (part.double().numpy() for part in mixture())
    columns = [0, 1, 2, 4]  # the terminal comes out as a flag
    expected = weights @ means
    covariance = (weights * std**2).sum() * np.eye(5) + (means.T * weights) @ means - np.outer(expected, expected)
    centred = events(exact_bundle(), 64) - expected
    products, n = centred[:, :, None] * centred[:, None, :], len(centred)
    error = np.abs(centred.mean(0)) / (centred.std(0) / math.sqrt(n))
    assert error[columns].max() < 3
    error = np.abs(products.mean(0) - covariance) / (products.std(0) / math.sqrt(n))
    assert error[np.ix_(columns, columns)].max() < 3


def test_c2_terminals_of_a_finite_data_set():
    """As often as in the data, and in the transitions that they belong to."""
    rng = np.random.default_rng(0)
    atoms = rng.normal(size=(30, 5))
    atoms[:, 3] = rng.permutation(30) < 2
    probabilities = rng.dirichlet(np.full(30, 5.0))
    data = torch.from_numpy(atoms).float()
    drawn = events(exact_bundle(AtomDenoiser(data, torch.from_numpy(probabilities).float())), 32)
    share = float(probabilities @ atoms[:, 3])
    assert drawn[:, 3].mean() == pytest.approx(share, abs=3 * math.sqrt(share * (1 - share) / len(drawn)))
    distance = np.linalg.norm(drawn[:, None] - atoms, axis=-1).min(1)
    assert distance.max() < 1e-3


def steps_of_a_walk(n=6_000):
    """Episodes that end when the state leaves +-1.2, with stored successors."""
    rng = np.random.default_rng(0)
    rows, state = [], 0.0
    for _ in range(n):
        action = rng.uniform(-1, 1)
        following = 0.8 * state + 0.8 * action + 0.05 * rng.normal()
        done = abs(following) > 1.2
        rows.append((state, action, following, done))
        state = rng.normal(0, 0.3) if done else following
    observation, action, following, done = (np.array(column) for column in zip(*rows, strict=True))
    return Dataset(
        observation=observation[:, None].astype(np.float32),
        action=action[:, None].astype(np.float32),
        reward=observation.astype(np.float32),
        terminal=done,
        timeout=np.zeros(n, dtype=bool),
        next_observation=following[:, None].astype(np.float32),
        name="walk",
        path="walk.hdf5",
    )


def test_c2_terminals_and_dynamics_of_a_trained_model(tmp_path):
    data = steps_of_a_walk()
    section = DenoiserConfig(
        network=NetworkConfig(width=96, depth=2),
        steps=1_000,
        batch_size=256,
        learning_rate=3e-3,
        ema=0.995,
        gradient_clip=1.0,
    )
    config = Config(generator={"method": "synther"}, denoiser=section)
    bundle = pretrain(training_windows(config, data), section, dataset_hash="d", folder=tmp_path)
    generator = TransitionGenerator(bundle, SamplerConfig(steps=32, churn=5, **PUBLISHED))
    made = generator.generate(None, 2_000, (3,)).trajectories.transitions()
    share = float(data.terminal.mean())
    assert made.terminal.mean() == pytest.approx(share, abs=3 * math.sqrt(share * (1 - share) / len(made)))
    error = made.next_observation - 0.8 * made.observation - 0.8 * made.action
    assert error.std() < 0.08, "the noise is 0.05, the effect of an action 0.46"
    beyond = np.abs(made.next_observation[:, 0]) > 1.2
    assert (beyond == made.terminal).mean() > 0.95
    assert beyond[made.terminal == 1].mean() > 0.7, "of all transitions 6 % are"


def test_trajectories_of_transitions_give_them_back():
    rng = np.random.default_rng(0)
    size, actions, n = 3, 2, 20
    before = Transitions(
        rng.normal(size=(n, size)).astype(np.float32),
        rng.normal(size=(n, actions)).astype(np.float32),
        rng.normal(size=n).astype(np.float32),
        rng.normal(size=(n, size)).astype(np.float32),
        (rng.random(n) < 0.3).astype(np.float32),
    )
    trajectories = as_trajectories(before.rows(), size, actions)
    assert trajectories.rows.shape == (n, 2, size + actions + 2)
    after = trajectories.transitions()
    for name in ("observation", "action", "reward", "next_observation", "terminal"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_policy_changes_nothing_but_the_agreement(deterministic):
    generator = TransitionGenerator(exact_bundle(), SamplerConfig(steps=8), delta=0.3)
    alone = generator.generate(None, 50, (7,))
    beside = generator.generate(Policy(deterministic), 50, (7,), strength=5.0)
    np.testing.assert_array_equal(alone.trajectories.rows, beside.trajectories.rows)
    assert alone.agreement is None
    assert (beside.nfe, beside.guidance, beside.strength) == (15, "none", 0.0)
    steps = beside.trajectories.transitions()
    deviation = steps.action - np.tanh(0.1 * steps.observation)
    variance = 0.09 if deterministic else 0.05
    assert beside.agreement.deviation == pytest.approx(float((deviation**2).mean()), rel=1e-5)
    expected = (-0.5 * (deviation**2 / variance + math.log(2 * math.pi * variance))).sum(1).mean()
    assert beside.agreement.log_likelihood == pytest.approx(float(expected), rel=1e-5)


def test_same_key_same_bytes():
    generator = TransitionGenerator(exact_bundle(), SamplerConfig(steps=4, churn=5))
    first, again, other = (generator.generate(None, 20, key).trajectories.rows for key in ((1, 2), (1, 2), (1, 3)))
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


def test_solver_and_precision_are_those_of_the_sampler():
    config = DenoiserConfig(network=NetworkConfig(width=16, depth=1))
    torch.manual_seed(0)
    denoiser = build_denoiser(config, "transition", 1, S, A).eval().requires_grad_(False)
    torch.nn.init.normal_(denoiser.network.output.weight, std=0.1)
    normalizer = TrajectoryNormalizer(torch.zeros(5), SCALE, S, A, "raw")
    bundle = DenoiserBundle(denoiser, normalizer, 1, S, A, "test", config, "transition")
    rows, calls = {}, {}
    for name, changes in {
        "heun": {},
        "ode": {"solver": "heun_ode"},
        "2m": {"solver": "dpmpp_2m"},
        "bf16": {"precision": "bfloat16"},
    }.items():
        made = TransitionGenerator(bundle, SamplerConfig(steps=10, **changes)).generate(None, 200, (1,))
        rows[name], calls[name] = made.trajectories.rows[:, 0, 0], made.nfe
    assert calls == {"heun": 19, "ode": 19, "2m": 10, "bf16": 19}
    assert not np.allclose(rows["heun"], rows["ode"], atol=0.1)
    assert np.corrcoef(rows["ode"], rows["2m"])[0, 1] > 0.99, "two solvers of one equation, from the same noise"
    assert 0 < np.abs(rows["heun"] - rows["bf16"]).max() < 0.1


def test_other_layouts_are_refused():
    config = DenoiserConfig(network=NetworkConfig(width=8, depth=1))
    normalizer = TrajectoryNormalizer(torch.zeros(4), torch.ones(4), S, A, "raw")
    bundle = DenoiserBundle(build_denoiser(config, "trajectory", 3, S, A), normalizer, 3, S, A, "test", config)
    with pytest.raises(ValueError, match="layout 'trajectory'"):
        TransitionGenerator(bundle, SamplerConfig())
