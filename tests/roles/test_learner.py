from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch

from raydiff.agents.api import Stage
from raydiff.config import Config
from raydiff.data.dataset import Dataset
from raydiff.roles.bad_states import BadUpdate
from raydiff.roles.learner import Learner
from raydiff.types import Trajectories

Build = Callable[..., Config]


def blocks(dataset: Dataset, count: int, n: int = 16, length: int = 3) -> list[np.ndarray]:
    """Blocks ``[n, L, C]`` that differ, without terminals, so that each fills its slot."""
    rng = np.random.default_rng(0)
    columns = dataset.observation_size + dataset.action_size + 2
    made = rng.normal(size=(count, n, length, columns)).astype(np.float32)
    made[..., -1] = 0.0
    return list(made)


def learner(config: Config, dataset: Dataset) -> Learner:
    return Learner(config, dataset.transitions("raydiff"), "learner")


def test_version_counts_updates_and_the_policy_changes(role_config: Build, role_dataset: Dataset) -> None:
    role = learner(role_config(**{"generator.count": 0}), role_dataset)
    first = role.policies()[0]
    (report,) = role.train(7)
    second = role.policies()[0]
    second.verify()
    assert (first.version, second.version, report.update, report.updates) == (0, 7, 7, 7)
    assert (first.weights != second.weights).any()
    assert report.lag is None
    assert report.waited == 0.0
    assert {"critic_loss", "actor_loss"} <= set(report.losses)
    assert role.train(3)[0].update == 10


def test_seed_decides_everything(role_config: Build, role_dataset: Dataset) -> None:
    def weights(seed: int) -> np.ndarray:
        role = learner(role_config(**{"generator.count": 0, "seed": seed}), role_dataset)
        role.train(5)
        return role.policies()[0].weights

    np.testing.assert_array_equal(weights(1), weights(1))
    assert (weights(1) != weights(2)).any()


def test_lag_is_that_of_the_sampled_rows(role_config: Build, role_dataset: Dataset) -> None:
    role = learner(role_config(), role_dataset)
    for slot, rows in enumerate(blocks(role_dataset, 3)):
        role.ingest(rows, slot, policy_version=0)
    first = role.train(10)[0].lag
    assert first is not None
    assert first.mean == pytest.approx(4.5)  # updates 0 to 9 on data of version 0
    assert first.max == 9
    for slot, rows in enumerate(blocks(role_dataset, 3)):
        role.ingest(rows, slot, policy_version=8)
    second = role.train(10)[0].lag
    assert second is not None
    assert second.mean == pytest.approx(6.5)  # updates 10 to 19 on data of version 8
    assert second.max == 11


def test_ingest_beside_training_loses_nothing(role_config: Build, role_dataset: Dataset) -> None:
    role = learner(role_config(), role_dataset)
    made = blocks(role_dataset, 61)
    role.ingest(made[0], 0, 0)
    begun = threading.Event()

    def ingest() -> None:
        for number, rows in enumerate(made[1:], start=1):
            role.ingest(rows, number % 3, number)
            begun.set()

    thread = threading.Thread(target=ingest)
    thread.start()
    assert begun.wait(10)
    chunks = 0
    while thread.is_alive() or chunks < 3:
        role.train(5)
        chunks += 1
    thread.join()
    assert role.update == 5 * chunks
    table = role.mixtures[0].synthetic
    assert table is not None
    sizes = role_dataset.observation_size, role_dataset.action_size
    for number in (58, 59, 60):
        slot = slice(number % 3 * table.slot_rows, (number % 3 + 1) * table.slot_rows)
        np.testing.assert_array_equal(
            table.records[slot].numpy(), Trajectories(made[number], *sizes).transitions().rows()
        )
        assert (table.versions[slot] == number).all()


def test_no_view_of_a_block_is_kept(role_config: Build, role_dataset: Dataset) -> None:
    role = learner(role_config(), role_dataset)
    rows = blocks(role_dataset, 1)[0]
    role.ingest(rows, 0, 0)
    before = role.mixtures[0].synthetic.records.clone()  # type: ignore[union-attr]
    rows[:] = 7.0
    assert (role.mixtures[0].synthetic.records == before).all()  # type: ignore[union-attr]


def test_non_finite_losses_stop_the_run(role_config: Build, role_dataset: Dataset) -> None:
    role = learner(role_config(), role_dataset)
    rows = blocks(role_dataset, 1)[0]
    rows[..., -2] = np.inf
    role.ingest(rows, 0, 0)
    with pytest.raises(FloatingPointError, match=r"critic_loss.* became non-finite in update 1; .* of reward that are"):
        role.train(10)


def test_stages_are_entered_once_and_in_order(
    role_config: Build, role_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    role = learner(role_config(**{"generator.count": 0}), role_dataset)
    assert sum(stage.updates for stage in role.stages) == 200
    name = role.stages[0].name
    entered: list[tuple[int, str]] = []
    begin = role.agent.begin_stage

    def note(stage: str, table: object) -> None:
        entered.append((role.update, stage))
        begin(name, table)

    monkeypatch.setattr(role.agent, "begin_stage", note)
    role.stages = [Stage("critics", 4), Stage("policy", 8)]
    for _ in range(4):
        role.train(4)  # also beyond the last stage
    assert entered == [(0, "critics"), (4, "policy")]


@pytest.mark.parametrize("algorithm", ["td3_bc", "iql"])
def test_every_algorithm_trains_on_the_mixture(role_config: Build, role_dataset: Dataset, algorithm: str) -> None:
    role = learner(role_config(**{"learner.algorithm": algorithm}), role_dataset)
    role.ingest(blocks(role_dataset, 1)[0], 1, 0)
    (report,) = role.train(4)
    assert all(np.isfinite(value) for value in report.losses.values())
    assert ("value_loss" in report.losses) == (algorithm == "iql")


def test_without_generators_there_is_no_table_to_ingest_into(role_config: Build, role_dataset: Dataset) -> None:
    role = learner(role_config(**{"generator.count": 0}), role_dataset)
    with pytest.raises(ValueError, match=r"generator\.count is 0"):
        role.ingest(blocks(role_dataset, 1)[0], 0, 0)


def test_each_seed_learns_as_if_it_were_alone(role_config: Build, role_dataset: Dataset) -> None:
    """Blocks are split into one table for each, of which each draws with its own random stream."""
    first, second = blocks(role_dataset, 2)
    role = learner(role_config(seed=3, **{"learner.seeds": 2}), role_dataset)
    role.ingest(np.concatenate([first[:10], second]), 1, 0, (10, 16))
    reports = role.train(6)
    for member, (rows, seed) in enumerate(((first[:10], 3), (second, 4))):
        alone = learner(role_config(seed=seed), role_dataset)
        alone.ingest(rows, 1, 0)
        (report,) = alone.train(6)
        assert (reports[member].losses, reports[member].lag) == (report.losses, report.lag)
        assert role.policies()[member].checksum == alone.policies()[0].checksum
        states = role.states()[member], alone.states()[0]
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert len({id(mixture.real) for mixture in role.mixtures}) == 1
    with pytest.raises(ValueError, match="zip"):
        role.ingest(first, 1, 0)  # whose parts are not told apart


def test_non_finite_losses_of_one_seed_name_it(role_config: Build, role_dataset: Dataset) -> None:
    role = learner(role_config(seed=3, **{"learner.seeds": 3}), role_dataset)
    rows = np.concatenate(blocks(role_dataset, 3))
    rows[16:32, :, -2] = np.inf
    role.ingest(rows, 0, 0, (16, 16, 16))
    with pytest.raises(BadUpdate, match=r"learner, seed 4: critic_loss.* in update 1; .* of reward that are") as raised:
        role.train(10)
    bad = raised.value
    assert (bad.header["seeds"], bad.header["config"]["seed"], bad.header["config"]["learner"]["seeds"]) == (3, 4, 1)
    alone = learner(role_config(seed=4), role_dataset)
    alone.ingest(rows[16:32], 0, 0)
    with pytest.raises(BadUpdate) as raised:
        alone.train(10)
    assert raised.value.tensors.keys() == bad.tensors.keys()
    assert all(torch.equal(raised.value.tensors[name], value) for name, value in bad.tensors.items())
