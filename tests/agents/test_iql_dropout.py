"""Dropout in IQL's actor: its law, its streams, and that nothing but the actor's training knows of it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from raydiff.agents.iql import IQL
from raydiff.config_learner import IQLConfig, LearnerConfig
from raydiff.types import Batch


def agent(dropout: float, hidden: tuple[int, ...] = (64, 64), seed: int | Sequence[int] = 3) -> IQL:
    config = LearnerConfig(algorithm="iql", hidden=hidden, updates=100, iql=IQLConfig(dropout=dropout))
    return IQL(config, 4, 2, torch.zeros(4), torch.ones(4), seed)


def batches(count: int) -> list[Batch]:
    draw = torch.Generator().manual_seed(0)
    return [
        Batch(*(torch.randn(*shape, generator=draw) for shape in ((32, 4), (32, 2), (32,), (32, 4))), torch.zeros(32))
        for _ in range(count)
    ]


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    """Means over 4,000 masks equal the plain output of a network with one hidden layer, which is linear in them."""
    made = agent(0.3, hidden=(64,))
    observation = torch.randn(1, 4, generator=torch.Generator().manual_seed(1)).expand(4_000, -1)
    kept = made._draw_kept(observation)
    assert float((kept[0] == 0).float().mean()) == pytest.approx(0.3, abs=0.005)
    drawn = made._actor_output(observation, kept)
    error = drawn.std(0) / 4_000**0.5
    assert ((drawn.mean(0) - made.actor(observation[:1])[0]).abs() < 5 * error).all()
    assert (error > 0).all()


def test_dropout_changes_the_actor_only_and_not_what_is_published() -> None:
    plain, dropped = agent(0.0), agent(0.1)
    first = batches(1)[0]
    plain.update(first)
    dropped.update(first)
    assert torch.equal(plain.critic.flat, dropped.critic.flat)
    assert torch.equal(plain.value.flat, dropped.value.flat)
    assert not torch.equal(plain.actor.flat, dropped.actor.flat)
    assert "dropout" not in plain.state_dict()
    assert (dropped.policy_blob(1).weights == dropped.policy_blob(1).weights).all()


def test_masks_of_ones_are_the_plain_loss_and_gradient() -> None:
    made, first = agent(0.4), batches(1)[0]
    ones = [torch.ones(32, 64), torch.ones(32, 64)]
    losses = [made.actor_loss(first.observation, first.action, first.reward, kept) for kept in ((), ones)]
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(*(torch.autograd.grad(loss, made.actor.flat)[0] for loss in losses))


def test_dropout_goes_on_bit_by_bit() -> None:
    through, stopped, again = agent(0.1), agent(0.1), agent(0.1)
    all_of_them = batches(6)
    for batch in all_of_them:
        through.update(batch)
    for batch in all_of_them[:3]:
        stopped.update(batch)
    again.load_state_dict(stopped.state_dict())
    for batch in all_of_them[3:]:
        again.update(batch)
    assert torch.equal(through.actor.flat, again.actor.flat)


def test_several_seeds_drop_what_each_drops_alone() -> None:
    several, alone = agent(0.2, seed=[3, 4]), [agent(0.2, seed=3), agent(0.2, seed=4)]
    for batch in batches(3):
        several.update(Batch(*(torch.stack([part, part]) for part in batch if part is not None)))
        for one in alone:
            one.update(batch)
    for member, one in enumerate(alone):
        torch.testing.assert_close(several.actor.alone(member).flat, one.actor.flat)
