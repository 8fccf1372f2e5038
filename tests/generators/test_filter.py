"""The reward filter: how many are kept and which (D3 and D6 of section D.8)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raydiff.config import GeneratorConfig
from raydiff.generators.filter import filter_trajectories, log_probabilities, reward_filter
from raydiff.types import Trajectories


def returns(n=2_048, seed=0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)) * 300 + 1_000


def config(kind, keep=0.6, temperature=0.05):
    return GeneratorConfig(filter=kind, keep=keep, temperature=temperature)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", ["hardmax", "softmax"])
@pytest.mark.parametrize(
    ("n", "keep", "count"), [(2_048, 0.6, 1_228), (100, 0.29, 29), (10, 0.75, 7), (3, 0.01, 1), (7, 1.0, 7)]
)
def test_d3_counts(kind, n, keep, count):
    kept = reward_filter(returns(n), config(kind, keep), generator())
    assert len(kept) == len(set(kept.tolist())) == count
    assert kept.tolist() == sorted(kept.tolist())


def test_d3_ties_may_add_to_hardmax():
    value = torch.tensor([1.0, 2.0, 2.0, 2.0, 0.0])
    assert reward_filter(value, config("hardmax", 0.4), generator()).tolist() == [1, 2, 3]
    assert len(reward_filter(value, config("softmax", 0.4), generator())) == 2


@pytest.mark.parametrize("kind", ["none", "hardmax", "softmax"])
def test_d3_all_are_kept_with_keep_one_and_without_a_filter(kind):
    keep = 0.3 if kind == "none" else 1.0
    assert reward_filter(returns(50), config(kind, keep), generator()).tolist() == list(range(50))
    assert len(reward_filter(returns(0), config(kind, keep), generator())) == 0


def test_d3_probabilities():
    value = returns()
    z = (value.double() - value.double().mean()) / value.double().std(correction=0)
    for uniform in (0.0, 1e-6):
        log_p = log_probabilities(value, 0.05, uniform)
        assert float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-12)
        expected = (1 - uniform) * torch.softmax(z / 0.05, 0) + uniform / len(value)
        torch.testing.assert_close(log_p.exp(), expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(log_probabilities(7 * value + 3, 0.05), log_probabilities(value, 0.05), rtol=0, atol=0.1)
    torch.testing.assert_close(log_probabilities(torch.ones(4), 0.05).exp(), torch.full((4,), 0.25).double())


def test_softmax_draws_by_its_probabilities_without_replacement():
    value, temperature, draws = torch.tensor([0.0, 1.0, 2.0]), 2.0, 4_000
    p = log_probabilities(value, temperature).exp()
    gen = generator(3)
    one = torch.stack([reward_filter(value, config("softmax", 0.34, temperature), gen) for _ in range(draws)])
    share = one[:, 0].bincount(minlength=3) / draws
    assert ((share - p).abs() < 4 * (p * (1 - p) / draws).sqrt()).all()
    two = torch.stack([reward_filter(value, config("softmax", 0.67, temperature), gen) for _ in range(draws)])
    without_first = float(((two[:, 0] == 1) & (two[:, 1] == 2)).double().mean())
    expected = float(p[1] * p[2] / (1 - p[1]) + p[2] * p[1] / (1 - p[2]))
    assert without_first == pytest.approx(expected, abs=4 * (expected * (1 - expected) / draws) ** 0.5)


@pytest.mark.parametrize("kind", ["hardmax", "softmax"])
def test_d6_the_mean_of_the_kept_is_higher(kind):
    for seed in range(20):
        value = returns(64, seed)
        kept = reward_filter(value, config(kind, 0.8), generator(seed))
        assert float(value[kept].mean()) > float(value.mean())


def test_softmax_is_near_hardmax_but_not_with_the_uniform_share_of_the_published_code():
    value = returns()
    gain = {
        name: float(value[kept].mean() - value.mean())
        for name, kept in {
            "hardmax": reward_filter(value, config("hardmax"), generator()),
            "softmax": reward_filter(value, config("softmax"), generator()),
            "published": reward_filter(value, config("softmax"), generator(), uniform=1e-6),
        }.items()
    }
    assert 0.95 * gain["hardmax"] < gain["softmax"] < gain["hardmax"]
    assert gain["published"] < 0.1 * gain["hardmax"]


def test_same_generator_same_choice():
    value = returns(100)
    first, again, other = (reward_filter(value, config("softmax"), generator(seed)).tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_single_transitions_are_filtered_by_their_reward():
    rows = np.zeros((10, 2, 5), dtype=np.float32)
    rows[:, 0, -2] = np.random.default_rng(0).permutation(10)
    made = Trajectories(rows, 2, 1)
    kept = filter_trajectories(made, torch.from_numpy(made.reward[:, 0]), config("hardmax", 0.5), generator())
    assert sorted(kept.reward[:, 0].tolist()) == [5, 6, 7, 8, 9]
    np.testing.assert_array_equal(kept.rows, rows[rows[:, 0, -2] >= 5])
