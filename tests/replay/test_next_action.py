"""What the data did next (section H.5): across the ends of episodes, in files and in generated trajectories."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raydiff.config import Config
from raydiff.data.dataset import Dataset, TransitionSemantics
from raydiff.errors import UserError
from raydiff.presets import load_config
from raydiff.replay.table import Table
from raydiff.roles.learner import Learner
from raydiff.types import Trajectories

S, A = 3, 2
TERMINAL, TIMEOUT, ROWS = 3, 7, 11  # three episodes: one terminates, one times out, the file ends within the third
FOLLOWED = [0, 1, 2, 4, 5, 6, 8, 9]
UNUSED = 99.0


def dataset(stored_successors: bool) -> Dataset:
    """Row ``i`` has reward ``i`` and the action ``i + 1`` in every entry, so that no action is 0."""
    flags = np.arange(ROWS)
    rows = np.arange(ROWS, dtype=np.float32)
    observation = np.repeat(rows[:, None], S, 1)
    return Dataset(
        observation=observation,
        action=np.repeat(rows[:, None] + 1, A, 1),
        reward=rows,
        terminal=flags == TERMINAL,
        timeout=flags == TIMEOUT,
        next_observation=observation + 0.5 if stored_successors else None,
        name="toy",
        path="toy.hdf5",
    )


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize(
    ("semantics", "kept"),
    [
        ("raydiff", sorted([*FOLLOWED, TERMINAL])),
        ("dynamics", FOLLOWED),
        ("d4rl_qlearning", sorted([*FOLLOWED, TERMINAL])),
        ("d4rl_qlearning_terminate_on_end", sorted([*FOLLOWED, TERMINAL])),
    ],
)
def test_it_never_comes_from_another_episode(semantics: TransitionSemantics, kept: list[int], stored: bool) -> None:
    if semantics == "dynamics" and stored:  # a stored successor of a terminal may be learnt from
        kept = sorted([*kept, TERMINAL])
    steps = dataset(stored).transitions(semantics, next_action=True)
    assert steps.reward.tolist() == kept
    assert steps.next_action is not None
    for row, following, terminal in zip(kept, steps.next_action, steps.terminal, strict=True):
        assert terminal == (row == TERMINAL)
        np.testing.assert_array_equal(following, np.zeros(A) if terminal else np.full(A, row + 2))
    np.testing.assert_array_equal(steps.action[:, 0], steps.reward + 1)
    if semantics == "raydiff" and stored:
        np.testing.assert_array_equal(steps.next_observation, steps.observation + 0.5)


def test_all_other_rows_are_those_of_the_transitions_without() -> None:
    for stored in (False, True):
        plain, steps = (dataset(stored).transitions("raydiff", next_action=ask) for ask in (False, True))
        assert plain.next_action is None
        same = np.isin(plain.reward, steps.reward)
        lost = set(plain.reward[~same].tolist())
        assert lost == ({TIMEOUT, ROWS - 1} if stored else set())  # without a stored successor they are no transitions
        for name in ("observation", "action", "reward", "next_observation", "terminal"):
            np.testing.assert_array_equal(getattr(plain, name)[same], getattr(steps, name))


def test_a_terminal_in_the_last_row_of_the_file_stays() -> None:
    data = dataset(False)
    data.terminal[-1] = True
    steps = data.transitions("raydiff", next_action=True)
    assert steps.reward.tolist() == sorted([*FOLLOWED, TERMINAL, ROWS - 1])
    assert steps.next_action is not None
    assert not steps.next_action[-1].any()


def trajectories() -> Trajectories:
    """Three of ``H`` = 3 transitions; the reward of transition ``t`` of trajectory ``i`` is ``10 i + t``, its action one
    more. The first never ends, the second ends at once, the third in its last transition."""
    rows = np.zeros((3, 4, S + A + 2), np.float32)
    number = 10 * np.arange(3)[:, None] + np.arange(4)
    rows[:, :, S : S + A] = number[..., None] + 1
    rows[:, :, -2] = number
    rows[:, -1, S:] = UNUSED  # of the closing row only the observation is used
    rows[1, 0, -1] = rows[2, 2, -1] = 1.0
    return Trajectories(rows, S, A)


def test_closing_rows_of_generated_trajectories_have_none() -> None:
    steps = trajectories().transitions(next_action=True)
    assert steps.reward.tolist() == [0, 1, 10, 20, 21, 22]  # 2 is followed by the closing row, and not terminal
    assert steps.next_action is not None
    assert steps.next_action[:, 0].tolist() == [2, 3, 0, 22, 23, 0]
    assert trajectories().transitions().reward.tolist() == [0, 1, 2, 10, 20, 21, 22]


def test_tables_hold_it_only_where_it_is_asked_for() -> None:
    steps = dataset(False).transitions("raydiff", next_action=True)
    plain, table = Table.from_transitions(steps), Table.from_transitions(steps, next_action=True)
    assert (plain.columns, table.columns) == (2 * S + A + 2, 2 * S + 2 * A + 2)
    assert plain.split(plain.records).next_action is None
    batch = table.split(table.gather(200, torch.Generator().manual_seed(0))[0])
    assert batch.next_action is not None
    assert set(batch.reward.tolist()) == set(steps.reward.tolist())
    ended = batch.reward == TERMINAL
    torch.testing.assert_close(batch.next_action[~ended, 1], batch.reward[~ended] + 2)
    assert not batch.next_action[ended].any()
    torch.testing.assert_close(batch.next_observation[~ended, 0], batch.reward[~ended] + 1)
    with pytest.raises(ValueError, match="do not know their next actions"):
        Table.from_transitions(dataset(False).transitions("raydiff"), next_action=True)


def config(**overrides: object) -> Config:
    values = {
        "learner.algorithm": "rebrac",
        "learner.hidden": [8],
        "learner.batch_size": 8,
        "learner.chunk": 5,
        "denoiser.length": 4,
        "generator.batch": 3,
        "replay.generation": 3,
        "replay.lifetime": 2,
        "replay.warmup": 3,
        **overrides,
    }
    return load_config(None, [f"{key}={value}" for key, value in values.items()])


def test_the_learner_that_needs_it_gets_it_from_both_tables() -> None:
    real = dataset(False).transitions("raydiff", next_action=True)
    learner = Learner(config(), real, "learner")
    learner.ingest(trajectories().rows, 0, 0)
    assert learner.mixtures[0].synthetic is not None
    assert len(learner.mixtures[0].synthetic) == 6
    batches, _ = learner.mixtures[0].chunk(5, 0, learner.generators[0])
    for batch in batches:
        assert batch.next_action is not None
        assert batch.next_action.abs().max() < UNUSED
    assert np.isfinite(learner.train(4)[0].losses["critic_loss"])


@pytest.mark.parametrize("overrides", [{"learner.algorithm": "td3_bc"}, {"learner.rebrac.critic_penalty": 0}])
def test_other_learners_do_not_pay_for_it(overrides: dict[str, object]) -> None:
    learner = Learner(config(**overrides), dataset(False).transitions("raydiff"), "learner")
    learner.ingest(trajectories().rows, 0, 0)
    assert learner.mixtures[0].synthetic is not None
    assert len(learner.mixtures[0].synthetic) == 7
    assert learner.real.columns == learner.mixtures[0].synthetic.columns == 2 * S + A + 2
    learner.train(2)


def test_generated_single_transitions_are_refused() -> None:
    real = dataset(False).transitions("raydiff", next_action=True)
    with pytest.raises(UserError, match=r"rebrac needs the action that follows.*synther.*critic_penalty=0"):
        Learner(config(**{"generator.method": "synther"}), real, "learner")
    Learner(config(**{"generator.method": "synther", "learner.rebrac.critic_penalty": 0}), real, "learner")
