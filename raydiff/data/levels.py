"""D4RL's levels for any environment with continuous actions: which policy stands for which level.

``medium`` is the policy of a training stopped at about a third of the expert's return, ``medium-replay`` the replay
buffer up to there, ``expert`` the policy at the target, ``full-replay`` the whole buffer and ``medium-expert`` medium
and expert in one file (Fu et al. 2020, section 5 and D4RL's collection of its locomotion data).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from raydiff.data.acting import Arrays, Recording, episode_returns, sample_rows, uniform_actor
from raydiff.data.behaviour import EVALUATION_EPISODES, Snapshot, plan_training, require_trainer, train_behaviour
from raydiff.data.collect import LEVELS, Value, attributes_of, check_request, collect, whole_dataset, write_dataset
from raydiff.envs.registry import canonical, environment_spec
from raydiff.errors import RunFailed, UserError
from raydiff.files import probe_folder
from raydiff.seeds import key_seed

Progress = Callable[[str, int, int, str], None]
"""What is being done, how much of it is done, how much there is in all, and the last return and the time left."""

# Level -> the policies that must have been reached for it, and how its rows are made.
_TRAINED: dict[str, tuple[tuple[str, ...], str]] = {
    "medium": (("medium",), "samples of the policy at the first evaluation that passed medium_target"),
    "medium-replay": (("medium",), "all training steps up to the first evaluation that passed medium_target"),
    "expert": (("expert",), "samples of the policy at the evaluation that the training ended with"),
    "medium-expert": (("medium", "expert"), "the rows of medium, then those of expert"),
    "full-replay": ((), "all training steps"),
}
ALL_LEVELS = (*LEVELS, *_TRAINED)


def collect_levels(
    environment: str,
    levels: Sequence[str],
    transitions: int,
    seed: int,
    folder: str | Path,
    steps: int | None = None,
    expert_return: float | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[Path]:
    """Write ``<environment>-<level>.hdf5`` for each level into ``folder``, in D4RL's schema; give their paths.

    ``transitions`` rows of each policy; a replay level has as many rows as its training took steps. One training of
    at most ``steps`` steps serves all levels; it ends where the mean return of an evaluation reaches
    ``expert_return`` (default: D4RL's reference score, else Gymnasium's reward threshold, else the return at the
    end). Each file is written as soon as its level is reached. The same seed gives the same bytes on one machine
    with one torch thread. Raises ``UserError`` for a bad request, files that exist (unless ``overwrite``) and a
    missing Stable-Baselines3, ``RunFailed`` when a level is not reached in ``steps``; files of the others stay.
    """
    environment, folder = canonical(environment), Path(os.path.expanduser(folder))
    levels = list(dict.fromkeys(levels))
    paths = {level: folder / f"{environment.replace('/', '-')}-{level}.hdf5" for level in levels}
    wanted = [level for level in levels if level in _TRAINED]
    _check_levels(environment, levels, transitions)
    if wanted:
        require_trainer()
    _check_files(folder, list(paths.values()), overwrite)
    report = progress or (lambda what, done, total, detail: None)
    training = None
    if wanted:
        training = _Training(environment, {level: paths[level] for level in wanted}, transitions, seed, report)
        training.prepare(steps, expert_return)  # A bad target is found before anything is collected.
    for level in levels:
        if level in LEVELS:
            collect(environment, level, transitions, seed, paths[level], _counted(report, f"collecting {level}"))
    if training is not None:
        training.run()
    return list(paths.values())


def medium_return(random: float, expert: float) -> float:
    """The return that makes a policy ``medium``: a third of the way from random to expert."""
    return random + (expert - random) / 3


def concatenate(first: Arrays, second: Arrays) -> Arrays:
    """The rows of ``first``, then those of ``second``."""
    return {name: np.concatenate([first[name], second[name]]) for name in first}


class _Training:
    """One training and the levels that it gives, each written when it is reached."""

    def __init__(self, environment: str, missing: dict[str, Path], transitions: int, seed: int, report: Progress):
        self.environment, self.missing, self.transitions, self.seed = environment, missing, transitions, seed
        self.report = report
        self.snapshots: list[Snapshot] = []
        self.reached: dict[str, Snapshot] = {}
        self.written: list[Path] = []
        self._samples: dict[str, Arrays] = {}

    def prepare(self, steps: int | None, expert_return: float | None) -> None:
        """Measure random actions; ``UserError`` for a target that they reach already."""
        self.plan = plan_training(self.environment, steps, expert_return)
        self.target = self.plan.expert_return
        act = uniform_actor(environment_spec(self.environment).action_size, key_seed(self.seed, "random"))
        self.random = episode_returns(self.environment, act, EVALUATION_EPISODES, key_seed(self.seed, "random"))
        if self.target is not None and not self.target > self.random.mean():
            raise UserError(
                f"The expert's return {self.target:g} is no more than what random actions get in {self.environment} "
                f"({self.random.mean():.1f} on average). Give a higher one by --expert-return."
            )

    def run(self) -> None:
        """Train until every level is there. ``RunFailed`` when the steps end before."""
        recording = train_behaviour(self.environment, self.plan, self.seed, self._on_snapshot, self._on_step)
        if self.target is None and self._has_learnt():
            self.target = self.snapshots[-1].mean_return
            self.reached["expert"] = self.snapshots[-1]
            for snapshot in self.snapshots:
                self._mark(snapshot, self.target)
        self._write_reached(recording)
        if "full-replay" in self.missing:
            self._write("full-replay", recording.arrays())
        if self.missing:
            raise RunFailed(self._failure())

    def _on_snapshot(self, snapshot: Snapshot, recording: Recording) -> bool:
        """Write what is reached now; whether to go on."""
        self.snapshots.append(snapshot)
        if self.target is not None:
            self._mark(snapshot, self.target)
            self._write_reached(recording)
        return bool(self.missing) and "expert" not in self.reached

    def _mark(self, snapshot: Snapshot, target: float) -> None:
        """Note a level that is reached for the first time; a policy as good as the expert is not medium."""
        if snapshot.mean_return >= target:
            self.reached.setdefault("expert", snapshot)
        elif snapshot.mean_return >= medium_return(float(self.random.mean()), target):
            self.reached.setdefault("medium", snapshot)

    def _has_learnt(self) -> bool:
        """Whether the last policy is better than random actions beyond the error of their mean return."""
        error = self.random.std(ddof=1) / np.sqrt(len(self.random))
        return self.snapshots[-1].mean_return > self.random.mean() + 3 * error

    def _write_reached(self, recording: Recording) -> None:
        for level in list(self.missing):
            needed = _TRAINED[level][0]
            if not needed or any(policy not in self.reached for policy in needed):
                continue
            if level == "medium-replay":
                self._write(level, recording.arrays(self.reached["medium"].steps))
            elif level == "medium-expert":
                self._write(level, concatenate(self._sampled("medium"), self._sampled("expert")))
            else:
                self._write(level, self._sampled(level))

    def _sampled(self, level: str) -> Arrays:
        """Rows of the stochastic policy of ``medium`` or ``expert``, as D4RL collects them."""
        if level not in self._samples:
            seed = key_seed(self.seed, "collect", level)
            act = self.reached[level].policy.actor(seed)
            note = _counted(self.report, f"collecting {level}")
            self._samples[level] = sample_rows(self.environment, act, self.transitions, seed, True, note)
        return self._samples[level]

    def _write(self, level: str, arrays: Arrays) -> None:
        path = self.missing[level]
        with whole_dataset(path) as part:
            write_dataset(part, arrays, attributes_of(self.environment, level, self.seed), self._about(level))
        self.written.append(self.missing.pop(level))

    def _about(self, level: str) -> dict[str, Value]:
        """The metadata of one file; the policy's weights under D4RL's names where one policy made the rows."""
        about: dict[str, Value] = {"algorithm": "SAC", "made": _TRAINED[level][1], "seed": self.seed}
        about["random_return"] = float(self.random.mean())
        if self.target is not None:
            about["expert_target"] = self.target
            about["medium_target"] = medium_return(float(self.random.mean()), self.target)
        about["evaluation_steps"] = np.array([snapshot.steps for snapshot in self.snapshots])
        about["evaluation_returns"] = np.array([snapshot.mean_return for snapshot in self.snapshots])
        for policy, snapshot in self.reached.items():
            about |= {f"snapshots/{policy}/steps": snapshot.steps, f"snapshots/{policy}/return": snapshot.mean_return}
        about |= {f"plan/{name}": value for name, value in vars(self.plan).items() if value is not None}
        if level in ("medium", "expert"):
            about |= {f"policy/{name}": array for name, array in self.reached[level].policy.arrays().items()}
            about |= {"policy/nonlinearity": "relu", "policy/output_distribution": "tanh_gaussian"}
        return about

    def _on_step(self, steps: int, seconds_left: float) -> None:
        last = f"return {self.snapshots[-1].mean_return:,.1f}" if self.snapshots else "no return yet"
        self.report("training SAC", steps, self.plan.steps, f"{last}, at most {_duration(seconds_left)} left")

    def _failure(self) -> str:
        returns = [snapshot.mean_return for snapshot in self.snapshots]
        why, remedy = f"The best mean return was {max(returns):,.1f}", "Give more --steps, or a lower --expert-return"
        if self.target is None:
            why += f", no better than the {self.random.mean():,.1f} of random actions"
        else:
            medium = medium_return(float(self.random.mean()), self.target)
            why += f"; medium begins at {medium:,.1f} and expert at {self.target:,.1f}"
        if "expert" in self.reached:
            why += ", and the return went past medium between two evaluations"
            remedy = "Try another --seed, or a higher --expert-return"
        written = ", ".join(str(path) for path in self.written) or "nothing"
        return (
            f"{self.environment}: {', '.join(self.missing)} not reached in {self.snapshots[-1].steps:,} training steps. "
            f"{why}. Written: {written}. {remedy}."
        )


def _check_levels(environment: str, levels: Sequence[str], transitions: int) -> None:
    unknown = [level for level in levels if level not in ALL_LEVELS]
    if unknown or not levels:
        what = f"There is no level {unknown[0]!r}" if unknown else "No level is given"
        raise UserError(f"{what} to collect. Give some of {', '.join(ALL_LEVELS)} by --levels.")
    for level in levels:
        check_request(environment, level if level in LEVELS else "random", transitions)


def _check_files(folder: Path, paths: Sequence[Path], overwrite: bool) -> None:
    existing = [path.name for path in paths if path.exists()]
    if existing and not overwrite:
        raise UserError(
            f"{folder} holds {', '.join(existing)} already. Give another folder by --out, or replace them by "
            f"--overwrite."
        )
    try:
        probe_folder(folder)
    except OSError as error:
        raise UserError(
            f"{folder}: datasets cannot be written there ({error.strerror or error}). Give a folder with write "
            f"permission and free space by --out."
        ) from error


def _counted(report: Progress, what: str) -> Callable[[int, int], None]:
    return partial(_count, report, what)


def _count(report: Progress, what: str, done: int, total: int) -> None:
    report(what, done, total, "")


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min" if seconds >= 60 else "a minute"
