"""Several seeds in one learner against learners of one seed each, and the bfloat16 products of both."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from raydiff.agents.iql import IQL
from raydiff.agents.networks import MLP
from raydiff.agents.policy import Policy
from raydiff.agents.td3_bc import TD3BC
from raydiff.config_learner import LearnerConfig
from raydiff.types import Batch

STATES, ACTIONS, ROWS, SEEDS = 5, 2, 32, (4, 5, 9)
SETTINGS: dict[str, dict[str, Any]] = {
    "td3_bc": {},
    "td3_bc, pgd's order": {"td3_bc": {"order": "pgd"}, "learning_rate_schedule": "cosine"},
    "iql": {},
}
LEARNERS = {"td3_bc": TD3BC, "iql": IQL}


def learner(name: str, seed: int | tuple[int, ...], **more: Any) -> Any:
    settings = {"hidden": (16, 12), "updates": 50, "learning_rate": 1e-2, **SETTINGS[name], **more}
    kind = name.split(",")[0]
    config = LearnerConfig(algorithm=kind, **settings)  # type: ignore[arg-type]
    mean, std = torch.linspace(-1, 1, STATES), torch.linspace(1, 2, STATES)
    return LEARNERS[kind](config, STATES, ACTIONS, mean, std, seed)


def batches(count: int, seed: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return [
        Batch(normal(ROWS, STATES), normal(ROWS, ACTIONS).tanh(), normal(ROWS), normal(ROWS, STATES),
              (torch.rand(ROWS, generator=generator) < 0.2).float())
        for _ in range(count)
    ]  # fmt: skip


def together(parts: list[Batch]) -> Batch:
    return Batch(*(torch.stack(fields) for fields in zip(*(part[:5] for part in parts), strict=True)))


@pytest.mark.parametrize("name", SETTINGS)
def test_batched_seeds_equal_separate_runs(name: str) -> None:
    batched, separate = learner(name, SEEDS), [learner(name, seed) for seed in SEEDS]
    batched.publish_critic = separate[0].publish_critic = True
    own = [batches(8, seed) for seed in SEEDS]
    for step in range(8):
        metrics = batched.update(together([stream[step] for stream in own]))
        for index, (alone, stream) in enumerate(zip(separate, own, strict=True)):
            for key, value in alone.update(stream[step]).items():
                assert metrics[key].shape == (len(SEEDS),)
                torch.testing.assert_close(metrics[key][index], value, atol=2e-5, rtol=2e-4)
    for index, alone in enumerate(separate):
        state, expected = batched.member_state(index), alone.state_dict()
        assert state.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(state[key], value, atol=2e-5, rtol=2e-4, msg=key)
        learner(name, 0).load_state_dict(state)
    blob, expected_blob = batched.policy_blob(3, 0), separate[0].policy_blob(3)
    assert blob.spec == expected_blob.spec
    observation = torch.randn(7, STATES)
    actions = [Policy.from_blob(each).act(observation) for each in (blob, expected_blob)]
    torch.testing.assert_close(*map(torch.from_numpy, actions), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", SETTINGS)
def test_seeds_never_meet(name: str) -> None:
    """What one seed sees changes nothing for another, bit by bit."""
    first, second = learner(name, SEEDS), learner(name, SEEDS)
    ours, theirs = batches(4, 1), batches(4, 2)
    for ours_now, theirs_now in zip(ours, theirs, strict=True):
        first.update(together([ours_now, ours_now, ours_now]))
        second.update(together([ours_now, theirs_now, ours_now]))
    for index, same in ((0, True), (1, False), (2, True)):
        one, other = first.member_state(index), second.member_state(index)
        assert torch.equal(one["actor"], other["actor"]) == same
        assert torch.equal(one["critic"], other["critic"]) == same


@pytest.mark.parametrize("name", SETTINGS)
def test_a_saved_state_of_several_seeds_goes_on_bit_by_bit(name: str) -> None:
    stream = [together([part] * 3) for part in batches(6, 3)]
    whole, first, second = learner(name, SEEDS), learner(name, SEEDS), learner(name, (7, 8, 6))
    for batch in stream:
        whole.update(batch)
    for batch in stream[:3]:
        first.update(batch)
    second.load_state_dict(first.state_dict())
    for batch in stream[3:]:
        second.update(batch)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


def test_the_first_weights_are_those_of_each_seed() -> None:
    several = MLP((3, 8, 1), 2, [torch.Generator().manual_seed(seed) for seed in SEEDS])
    for index, seed in enumerate(SEEDS):
        alone = MLP((3, 8, 1), 2, torch.Generator().manual_seed(seed))
        assert torch.equal(several.member(several.flat, index), alone.flat)
        assert torch.equal(several.alone(index).flat, alone.flat)


@pytest.mark.parametrize("heads", [None, 2])
def test_bfloat16_products_keep_float32_weights_and_outputs(heads: int | None) -> None:
    """The relative error is that of numbers with 8 bits; the input's gradient also jumps where a unit near zero is on
    in one precision and off in the other."""
    sizes = (23, 64, 64, 1)
    exact, rounded = (
        MLP(sizes, heads, torch.Generator().manual_seed(0), precision=kind) for kind in (torch.float32, torch.bfloat16)
    )
    assert torch.equal(exact.flat, rounded.flat)
    results = []
    for network in (exact, rounded):
        inputs = torch.randn(128, 23, generator=torch.Generator().manual_seed(1)).requires_grad_()
        output = network(inputs)
        assert output.dtype == torch.float32
        gradients = torch.autograd.grad(output.sum(), [network.flat, inputs])
        assert all(gradient.dtype == torch.float32 for gradient in gradients)
        results.append([output.detach(), *gradients])
    for one, other, limit in zip(*results, (0.01, 0.01, 0.15), strict=True):
        assert 1e-4 < (one - other).norm() / one.norm() < limit


@pytest.mark.parametrize("name", ["td3_bc", "iql"])
def test_bfloat16_updates_follow_float32_ones(name: str) -> None:
    exact, rounded = learner(name, 0), learner(name, 0, precision="bfloat16")
    for batch in batches(20, 4):
        expected, found = exact.update(batch), rounded.update(batch)
    assert all(value.dtype == torch.float32 for value in rounded.state_dict().values() if value.is_floating_point())
    for key in ("critic_loss", "value"):
        torch.testing.assert_close(found[key], expected[key], atol=0.05, rtol=0.1)
