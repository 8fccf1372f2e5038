"""Support actions: found by the bits of a state, drawn when first asked for, the same whatever the order (section G)."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from raydiff.agents.noise_network import NetworkSpec, NoiseNetwork
from raydiff.agents.support_actions import BLOCK, SupportActions, _keys, _normal
from raydiff.diffusion.vp import VP, sample

ACTIONS = (3, 2)


class Recorded:
    """A draw that gives back its noise, and keeps what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[Tensor] = []

    def __call__(self, observation: Tensor, noise: Tensor) -> Tensor:
        self.asked.append(observation)
        return noise


def states(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))


def test_lookup_finds_exactly_the_observations_that_it_holds() -> None:
    held = torch.randint(-2, 3, (500, 4), generator=torch.Generator().manual_seed(3)).float()
    support = SupportActions(held, ACTIONS, 0, lambda rows, noise: rows[:, None, :2].expand(-1, 3, 2))
    assert len(support) == len(torch.unique(held, dim=0))
    asked = torch.cat([held, held + 0.5, held.flip(1)])
    action, found = support(asked)
    rows = {tuple(row) for row in held.tolist()}
    assert found.tolist() == [tuple(row) in rows for row in asked.tolist()]
    assert torch.equal(action[found], asked[found][:, None, :2].expand(-1, 3, 2))


def test_nothing_is_drawn_before_it_is_asked_for_and_nothing_twice() -> None:
    """Blocks of one size, filled up with states to come: all of the table costs no more calls than at once."""
    held, draw = states(1000), Recorded()
    support = SupportActions(torch.cat([held, held]), ACTIONS, 0, draw)
    assert (len(support), support.left, draw.asked) == (1000, 1000, [])
    support(states(50, seed=1))  # none of the table's
    assert draw.asked == []
    support(held[:100])
    assert (support.left, len(draw.asked)) == (1000 - 2 * BLOCK, 2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        support(held[torch.randint(1000, (50,), generator=generator)])
    assert (support.left, len(draw.asked)) == (0, math.ceil(1000 / BLOCK))
    assert {len(rows) for rows in draw.asked} == {BLOCK}
    drawn = torch.cat(draw.asked)
    assert torch.equal(torch.unique(drawn, dim=0), torch.unique(held, dim=0))
    assert len(drawn) < 1000 + BLOCK


@pytest.mark.parametrize("threads", [1, 2])
def test_actions_do_not_depend_on_the_order_of_rows_or_of_lookups(threads: int) -> None:
    """To the last bit, through a network and its sampler: neighbours in a block leave no trace."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    spec = NetworkSpec(kind="residual", inputs=2, condition=4, hidden=(32, 32), activation="swish")
    network, vp = NoiseNetwork(spec, torch.Generator().manual_seed(0)), VP("continuous")

    def draw(rows: Tensor, noise: Tensor) -> Tensor:
        return sample(lambda x, t: network(x, t[:, None], rows[:, None]), noise, vp, "dpmpp_2m", 5)

    held = states(300)
    try:
        at_once = SupportActions(held, ACTIONS, 7, draw)(held)[0]
        for order in (held.flip(0), torch.cat([held, held[:50]])):
            support = SupportActions(order, ACTIONS, 7, draw)
            for first in range(0, 300, 37):
                support(held[(first * 11) % 300 :][:5])
            assert torch.equal(support(held)[0], at_once)
    finally:
        torch.set_num_threads(before)
    assert at_once.std(1).mean() > 0.1


def test_noise_is_standard_normal_and_belongs_to_state_and_seed() -> None:
    keys = _keys(states(20_000))
    noise = _normal(keys, 5, 6)
    assert kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3
    assert (torch.corrcoef(noise.T) - torch.eye(6)).abs().max() < 5 / math.sqrt(20_000)
    neighbours = torch.corrcoef(torch.stack([noise[1:, 0], noise[:-1, 0]]))[0, 1]
    assert neighbours.abs() < 5 / math.sqrt(20_000)
    order = torch.randperm(20_000, generator=torch.Generator().manual_seed(1))
    assert torch.equal(_normal(keys[order], 5, 6), noise[order])
    other = _normal(keys, 6, 6)
    assert torch.corrcoef(torch.stack([other[:, 0], noise[:, 0]]))[0, 1].abs() < 5 / math.sqrt(20_000)
    assert noise.isfinite().all()
