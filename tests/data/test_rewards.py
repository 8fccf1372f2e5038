from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raydiff.config import Config
from raydiff.data.dataset import Dataset
from raydiff.data.rewards import learner_rewards, resolve_rewards
from raydiff.errors import UserError
from raydiff.presets import derive, load_config, validate


def episodes(*rewards: list[float], cut: list[float] | None = None) -> Dataset:
    """Episodes with these rewards, the last step of each a terminal; then one that the collection cut."""
    flat = np.concatenate([np.asarray(episode, np.float32) for episode in [*rewards, cut or []]])
    terminal = np.zeros(len(flat), bool)
    terminal[np.cumsum([len(episode) for episode in rewards], dtype=np.int64) - 1] = True
    rows = np.arange(len(flat), dtype=np.float32)[:, None]
    return Dataset(
        observation=rows, action=rows * 0, reward=flat, terminal=terminal, timeout=terminal & False,
        next_observation=rows + 1, name="made", path="made.hdf5",
    )  # fmt: skip


def config(*overrides: str) -> Config:
    return load_config(None, overrides)


def seen(dataset: Dataset, *overrides: str) -> np.ndarray:
    resolved = resolve_rewards(config(*overrides), dataset)
    return learner_rewards(dataset.transitions("raydiff"), resolved.data).reward


def test_rewards_are_left_alone_by_default() -> None:
    steps = episodes([1, 2]).transitions("raydiff")
    assert learner_rewards(steps, Config().data) is steps
    assert resolve_rewards(Config(), episodes([1, 2])) == Config()


@pytest.mark.parametrize(("overrides", "expected"), [
    (["data.reward_scale=100"], [100, 0, 200]),  # ReBRAC in AntMaze
    (["data.reward_shift=-1"], [0, -1, 1]),  # IQL in AntMaze
    (["data.reward_scale=4", "data.reward_shift=-2"], [2, -2, 6]),  # Diffusion-QL in AntMaze: 4 (r - .5)
])  # fmt: skip
def test_scale_comes_before_shift(overrides: list[str], expected: list[float]) -> None:
    np.testing.assert_allclose(seen(episodes([1, 0, 2]), *overrides), expected)


def test_return_range_is_that_of_complete_episodes() -> None:
    """Returns of 1, 5 and -3: a range of 8. What was cut, though it has the largest return, does not count."""
    data = episodes([1, 0], [2, 3], [-3], cut=[50, 50])
    scaled = seen(data, "data.reward_normalization=return_range", "data.reward_scale=1000", "data.reward_shift=-1")
    np.testing.assert_allclose(scaled, 1000 * data.reward[: len(scaled)] / 8 - 1)
    assert scaled.dtype == np.float32


def test_standard_rewards_have_mean_0_and_deviation_1() -> None:
    data = episodes([1, 5, 2], [7, 7])
    scaled = seen(data, "data.reward_normalization=standard")
    assert scaled.mean() == pytest.approx(0, abs=1e-6)
    assert scaled.std() == pytest.approx(1, rel=1e-6)
    twice = seen(data, "data.reward_normalization=standard", "data.reward_scale=2", "data.reward_shift=3")
    np.testing.assert_allclose(twice, 2 * scaled + 3, rtol=1e-6)


def test_resolved_settings_say_the_numbers_and_stay_as_they_are() -> None:
    asked = config("data.reward_normalization=return_range", "data.reward_scale=1000")
    resolved = resolve_rewards(asked, episodes([1], [5]))
    assert (resolved.data.reward_normalization, resolved.data.reward_scale) == ("none", 250.0)
    assert resolve_rewards(resolved, episodes([1], [9])) == resolved
    with pytest.raises(ValueError, match="not resolved"):
        learner_rewards(episodes([1], [5]).transitions("raydiff"), asked.data)


@pytest.mark.parametrize(("data", "normalization", "part"), [
    (episodes(cut=[1, 2]), "return_range", "holds 0 complete ones"),
    (episodes([3]), "return_range", "holds 1 complete ones"),
    (episodes([3], [1, 2]), "return_range", "2 complete episodes of equal return"),
    (episodes([2, 2]), "standard", "all of made.hdf5 are 2"),
])  # fmt: skip
def test_data_without_a_range_are_refused(data: Dataset, normalization: str, part: str) -> None:
    with pytest.raises(UserError) as error:
        resolve_rewards(config(f"data.reward_normalization={normalization}"), data)
    assert part in str(error.value)
    assert "Set data.reward_normalization=none" in str(error.value)


@pytest.mark.parametrize("overrides", [
    {"learner.tau": 0.1},
    {"data.reward_shift": -1},
    {"data": {"reward_normalization": "none"}},
    {"data.reward_normalization": "return_range", "data.reward_scale": 1000},
])  # fmt: skip
def test_arms_of_a_resolved_run_are_those_of_the_run(overrides: dict[str, object]) -> None:
    """So that a run's own config.yaml makes the same run again."""
    data = episodes([1, 0], [2, 3])
    given = config("data.reward_normalization=standard", "data.reward_scale=2").model_copy(
        update={"arms": {"x": overrides}}
    )
    again = validate(resolve_rewards(given, data).model_dump(mode="json"), "config.yaml")
    assert again.data == resolve_rewards(given, data).data
    arms = [resolve_rewards(derive(run, run.arms["x"], "arms.x"), data) for run in (given, again)]
    assert arms[0] == arms[1]


def test_arms_may_see_other_rewards_of_the_same_data(tmp_path: Path) -> None:
    arm = derive(config(), {"data.reward_normalization": "return_range", "data.reward_scale": 1000}, "arms.iql")
    assert arm.data.reward_scale == 1000
    with pytest.raises(UserError, match=r"arms\.x changes data"):
        derive(config(), {"data.reward_scale": 2, "data.seed": 3}, "arms.x")
