"""Real trainings, kept small: about fifteen seconds of SAC on Pendulum for all levels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gymnasium
import h5py
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from raydiff.data.d4rl import read_d4rl
from raydiff.data.levels import collect_levels
from raydiff.envs.registry import environment_spec, make_env
from raydiff.errors import RunFailed, UserError

LEVELS = ["random", "medium", "medium-replay", "expert", "medium-expert", "full-replay"]
ROWS = 4000
EXPERT = -500.0
Call = tuple[str, int, int, str]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def calls() -> list[Call]:
    return []


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory: pytest.TempPathFactory, calls: list[Call]) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("levels") / "new"
    paths = collect_levels(
        "Pendulum-v1", LEVELS, ROWS, 0, folder, expert_return=EXPERT, progress=lambda *call: calls.append(call)
    )
    assert sorted(folder.iterdir()) == sorted(paths)
    return dict(zip(LEVELS, paths, strict=True))


def number(path: Path, name: str) -> float:
    with h5py.File(path) as file:
        return float(file[f"metadata/{name}"][()])


def test_names_sizes_and_attributes(pendulum: dict[str, Path]) -> None:
    assert [path.name for path in pendulum.values()] == [f"Pendulum-v1-{level}.hdf5" for level in LEVELS]
    rows = {level: len(read_d4rl(path, 200)) for level, path in pendulum.items()}
    assert rows["random"] == rows["medium"] == rows["expert"] == ROWS
    assert rows["medium-expert"] == 2 * ROWS
    assert rows["medium-replay"] == number(pendulum["medium-replay"], "snapshots/medium/steps")
    assert rows["full-replay"] == number(pendulum["full-replay"], "snapshots/expert/steps")
    for level, path in pendulum.items():
        read_d4rl(path, 200).check_environment(environment_spec("Pendulum-v1"))
        with h5py.File(path) as file:
            assert (file.attrs["environment"], file.attrs["level"], file.attrs["seed"]) == ("Pendulum-v1", level, 0)
            assert file.attrs["native_action_high"].tolist() == [2]
            assert file["next_observations"].shape == file["observations"].shape
            assert ("infos/action_log_probs" in file) == (level in ("medium", "expert", "medium-expert"))
            assert file["metadata/algorithm"][()] == (b"uniform" if level == "random" else b"SAC")


def test_policies_are_of_their_level(pendulum: dict[str, Path]) -> None:
    returns = {level: read_d4rl(path, 200).episode_returns() for level, path in pendulum.items()}
    path = pendulum["medium-expert"]
    random, medium, expert = (number(path, name) for name in ("random_return", "medium_target", "expert_target"))
    assert expert == EXPERT
    assert medium == pytest.approx(random + (expert - random) / 3)
    assert medium <= number(path, "snapshots/medium/return") < expert <= number(path, "snapshots/expert/return")
    # The rows are new samples of those policies: the same level within the error of 20 and of 10 episodes.
    error = {level: returns[level].std() * np.sqrt(1 / 20 + 1 / 10) for level in ("random", "medium", "expert")}
    assert returns["random"].mean() == pytest.approx(random, abs=4 * error["random"])
    for level in ("medium", "expert"):
        assert returns[level].mean() == pytest.approx(number(path, f"snapshots/{level}/return"), abs=4 * error[level])
    assert returns["random"].mean() < returns["medium"].mean() < returns["expert"].mean()


def test_evaluations_tell_when_a_level_was_first_passed(pendulum: dict[str, Path]) -> None:
    with h5py.File(pendulum["full-replay"]) as file:
        steps, returns = file["metadata/evaluation_steps"][()], file["metadata/evaluation_returns"][()]
    assert np.all(np.diff(steps) == 250)
    for level in ("medium", "expert"):
        bar = number(pendulum["full-replay"], f"{level}_target")
        assert steps[np.argmax(returns >= bar)] == number(pendulum["full-replay"], f"snapshots/{level}/steps")
    assert steps[-1] == number(pendulum["full-replay"], "snapshots/expert/steps")  # no step beyond what is needed


def test_replays_are_the_training_and_concatenations_the_parts(pendulum: dict[str, Path]) -> None:
    data = {level: read_d4rl(path, 200) for level, path in pendulum.items()}
    count = len(data["medium-replay"])
    for name in ("observation", "action", "reward", "next_observation"):
        replay, full, both = (getattr(data[level], name) for level in ("medium-replay", "full-replay", "medium-expert"))
        np.testing.assert_array_equal(replay, full[:count])
        np.testing.assert_array_equal(both[:ROWS], getattr(data["medium"], name))
        np.testing.assert_array_equal(both[ROWS:], getattr(data["expert"], name))
    assert data["medium-replay"].timeout[-1]


@pytest.mark.parametrize("level", ["medium", "full-replay"])
def test_rows_obey_the_simulator(pendulum: dict[str, Path], level: str) -> None:
    data = read_d4rl(pendulum[level], 200)
    ends = np.flatnonzero(data.timeout)
    assert np.all(np.diff(ends[: len(ends) - 1]) == 200)
    inside = np.setdiff1d(np.arange(len(data) - 1), ends)
    np.testing.assert_array_equal(data.next_observation[inside], data.observation[inside + 1])
    env = make_env("Pendulum-v1")
    env.reset(seed=0)
    for t in range(0, len(data), 37):
        cosine, sine, speed = data.observation[t].astype(float)
        env.unwrapped.state = np.array([np.arctan2(sine, cosine), speed])
        observation, reward, *_ = env.step(data.action[t])
        np.testing.assert_allclose(data.next_observation[t], observation, atol=1e-4)
        assert data.reward[t] == pytest.approx(reward, abs=1e-4)


def test_log_probs_are_those_of_the_policy_in_the_file(pendulum: dict[str, Path]) -> None:
    with h5py.File(pendulum["expert"]) as file:
        policy = {name: item[()] for name, item in file["metadata/policy"].items() if isinstance(item, h5py.Dataset)}
        weights = {name: (group["weight"][()], group["bias"][()]) for name, group in file["metadata/policy"].items()
                   if isinstance(group, h5py.Group)}  # fmt: skip
        observation, action = file["observations"][()], file["actions"][()].astype(np.float64)
        log_prob = file["infos/action_log_probs"][()]
    assert policy == {"nonlinearity": b"relu", "output_distribution": b"tanh_gaussian"}
    hidden = observation
    for name in ("fc0", "fc1"):
        hidden = np.maximum(hidden @ weights[name][0].T + weights[name][1], 0)
    mean, log_std = (hidden @ weights[name][0].T + weights[name][1] for name in ("last_fc", "last_fc_log_std"))
    inner = np.abs(action[:, 0]) < 0.99  # beyond, arctanh loses the digits of float32
    assert inner.sum() > 300
    density = torch.distributions.Normal(torch.tensor(mean), torch.tensor(log_std).exp())
    squashed = torch.distributions.TransformedDistribution(density, torch.distributions.TanhTransform())
    expected = squashed.log_prob(torch.tensor(action)).sum(dim=1).numpy()
    np.testing.assert_allclose(log_prob[inner], expected[inner], atol=2e-2)


def test_progress_names_the_work_and_the_last_return(pendulum: dict[str, Path], calls: list[Call]) -> None:
    kinds = list(dict.fromkeys(what for what, *_ in calls))
    assert kinds == ["collecting random", "training SAC", "collecting medium", "collecting expert"]
    training = [(done, detail) for what, done, total, detail in calls if what == "training SAC" and total == 20_000]
    assert [done for done, _ in training] == list(range(100, 100 * len(training) + 1, 100))
    assert training[0][1].startswith("no return yet, at most ")
    assert training[-1][1].startswith("return -")


def test_what_exists_is_refused_before_any_work(pendulum: dict[str, Path]) -> None:
    before = pendulum["medium"].stat().st_mtime_ns
    with pytest.raises(UserError, match=r"holds Pendulum-v1-medium\.hdf5 already.*--overwrite"):
        collect_levels("Pendulum-v1", ["medium"], 100, 0, pendulum["medium"].parent)
    assert pendulum["medium"].stat().st_mtime_ns == before


def test_levels_not_reached_are_told_and_seeds_decide(tmp_path: Path) -> None:
    paths = []
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        with pytest.raises(RunFailed, match=r"medium, expert not reached in 300 training steps.*full-replay\.hdf5"):
            collect_levels("Pendulum-v1", ["medium", "expert", "full-replay"], 100, seed, tmp_path / folder, steps=300)
        paths.append(tmp_path / folder / "Pendulum-v1-full-replay.hdf5")
        assert list((tmp_path / folder).iterdir()) == paths[-1:]
    first, again, other = (path.read_bytes() for path in paths)
    assert first == again
    assert read_d4rl(paths[0]).sha256 != read_d4rl(paths[2]).sha256
    assert first != other


def test_ctrl_c_leaves_whole_files_only(tmp_path: Path) -> None:
    def interrupt(what: str, done: int, total: int, detail: str) -> None:
        if what == "training SAC":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect_levels("Pendulum-v1", ["random", "full-replay"], 300, 0, tmp_path, steps=300, progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["Pendulum-v1-random.hdf5"]
    assert len(read_d4rl(tmp_path / "Pendulum-v1-random.hdf5")) == 300


class Walk(gymnasium.Env):
    """A point on a line, rewarded for going up, or for nothing."""

    observation_space, action_space = Box(-100, 100, (1,)), Box(-1, 1, (1,))

    def __init__(self, gain: float) -> None:
        self.gain, self.position = gain, 0.0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.position = 0.0
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.position += float(action[0])
        return np.array([self.position], dtype=np.float32), self.gain * float(action[0]), False, False, {}


@pytest.fixture(scope="module", autouse=True)
def walks() -> Iterator[None]:
    for name, gain in (("Walk-v0", 1.0), ("Idle-v0", 0.0)):
        gymnasium.register(name, entry_point=Walk, max_episode_steps=10, kwargs={"gain": gain})
    yield
    for name in ("Walk-v0", "Idle-v0"):
        del gymnasium.registry[name]


def test_without_a_known_target_the_end_of_training_is_the_expert(tmp_path: Path) -> None:
    medium, expert = collect_levels("Walk-v0", ["medium", "expert"], 500, 0, tmp_path, steps=500)
    assert number(expert, "snapshots/expert/steps") == 500
    target, random = number(expert, "expert_target"), number(expert, "random_return")
    assert target == number(expert, "snapshots/expert/return") > random + 2
    assert number(medium, "medium_target") == pytest.approx(random + (target - random) / 3)
    assert number(medium, "snapshots/medium/return") >= number(medium, "medium_target")
    assert number(medium, "snapshots/medium/steps") < 500
    assert read_d4rl(expert, 10).episode_returns().mean() > read_d4rl(medium, 10).episode_returns().mean()


def test_a_policy_as_good_as_the_expert_is_not_medium(tmp_path: Path) -> None:
    (replay,) = collect_levels("Walk-v0", ["full-replay"], 100, 0, tmp_path, steps=100)
    target = number(replay, "random_return") + 1e-6  # leaves no room for medium
    with pytest.raises(RunFailed, match=r"medium not reached.*past medium between.*Walk-v0-expert\.hdf5.*--seed"):
        collect_levels("Walk-v0", ["medium", "expert"], 100, 0, tmp_path, steps=500, expert_return=target)
    assert number(tmp_path / "Walk-v0-expert.hdf5", "snapshots/expert/steps") < 500


def test_a_training_that_learns_nothing_has_no_levels(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"Idle-v0: expert not reached.*no better than the .*Written: nothing"):
        collect_levels("Idle-v0", ["expert"], 100, 0, tmp_path, steps=100)


@pytest.mark.parametrize(
    ("levels", "arguments", "text"),
    [
        (["best"], {}, r"no level 'best' to collect.*medium-replay"),
        ([], {}, "No level is given"),
        (["waypoint"], {}, "needs a maze2d environment"),
        (["medium"], {"steps": 50}, "cannot be trained in 50 steps"),
        (["random", "medium"], {"expert_return": -5000.0}, "no more than what random actions get"),
    ],
)
def test_bad_requests_of_levels(levels: list[str], arguments: dict, text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=text):
        collect_levels("Pendulum-v1", levels, 100, 0, tmp_path, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"datasets cannot be written there.*--out"):
        collect_levels("Pendulum-v1", ["medium"], 100, 0, tmp_path / "file" / "folder")
