"""What is compared with what: runs that differ in nothing but their seed are one condition, each arm one of its own.

A task is an environment with its data; scores of different tasks are never averaged but in the aggregates over tasks.
A setting that cannot act on an arm (guidance, for a learner on real data alone) does not set conditions apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from string import ascii_uppercase
from typing import Any

from raydiff.agents.registry import ALGORITHMS
from raydiff.comparison.runs import MINARI, Run
from raydiff.envs.registry import ALIASES
from raydiff.figures import pretty
from raydiff.metrics import Record
from raydiff.presets import GENERATION

_PLACE = ("name", "output", "arms_together", "data.cache", "cluster.address", "cluster.wait", "cluster.timeout_s")
_IGNORED = frozenset([*_PLACE, "learner.seeds", "learner.batch_seeds"])
_DATA = ("data.dataset", "data.file", "data.environment", "data.version", "data.level", "data.transitions")
_GENERATION = tuple(f"{section}." for section in GENERATION)
_LEADING = ("guided", "real_only")
_MOST_IN_LABEL = 2  # settings that a label spells out before it falls back to the names of the runs


@dataclass(frozen=True)
class Task:
    """An environment with its data. ``scale`` is ``d4rl``, ``minari`` or ``raw``: one of ``raydiff.comparison.runs``."""

    environment: str
    data: str
    scale: str

    @property
    def title(self) -> str:
        return f"{self.environment} · {self.data}" if self.data != self.environment else self.data


@dataclass(frozen=True)
class Trial:
    """One seed of one arm of one run: a learner trained once."""

    run: Run
    arm: str
    task: Task
    seed: int

    @property
    def records(self) -> list[Record]:
        """Those of the run that are not of another seed."""
        return [record for record in self.run.records if record.get("seed") in (None, self.seed)]


@dataclass(frozen=True)
class Condition:
    """Trials that differ only in their seed (and task), with the settings that act on them.

    ``special`` tells the conditions of one arm apart, and is empty where there is only one.
    """

    arm: str
    special: str
    settings: dict[str, Any]
    trials: tuple[Trial, ...]

    @property
    def label(self) -> str:
        return f"{pretty(self.arm)} ({self.special})" if self.special else pretty(self.arm)

    def of(self, task: Task) -> list[Trial]:
        return [trial for trial in self.trials if trial.task == task]

    def seeds(self, task: Task) -> list[int]:
        return sorted({trial.seed for trial in self.of(task)})


@dataclass(frozen=True)
class Comparison:
    """Everything that is compared.

    ``run_tasks`` are the tasks of the runs. ``task_settings`` are settings that change with the task and with nothing
    else. ``repeated`` are trials of a condition, task and seed that another run has too: the first named counts, for
    one seed twice is not two seeds.
    """

    runs: tuple[Run, ...]
    run_tasks: tuple[Task, ...]
    conditions: tuple[Condition, ...]
    task_settings: dict[str, dict[Task, Any]]
    repeated: tuple[Trial, ...] = ()

    @property
    def tasks(self) -> list[Task]:
        return list(dict.fromkeys(self.run_tasks))

    def condition_of(self, run: Run, arm: str) -> Condition:
        """The condition that an arm of a run belongs to, also where another run of its seed counts."""
        trial = next((t for t in self.repeated if t.run is run and t.arm == arm), None)
        for condition in self.conditions:
            own = any(t.run is run and t.arm == arm for t in condition.trials)
            if own or (
                trial is not None
                and condition.arm == _kinds(run)[arm]
                and _own(trial, self.task_settings) == condition.settings
            ):
                return condition
        raise KeyError(arm)

    def scales(self) -> list[str]:
        return list(dict.fromkeys(task.scale for task in self.tasks))

    def short(self, task: Task) -> str:
        """The environment alone where it names one task only, else with the data."""
        alike = [other for other in self.tasks if other.environment == task.environment]
        return task.environment if len(alike) == 1 else task.title

    def of(self, task: Task) -> list[Condition]:
        """Conditions with trials on the task."""
        return [condition for condition in self.conditions if condition.of(task)]


def compare(runs: Sequence[Run]) -> Comparison:
    """Group the arms of all runs into conditions."""
    tasks = _tasks(runs)
    trials = [
        Trial(run, arm, task, seed)
        for run, task in zip(runs, tasks, strict=True)
        for arm in run.arms
        for seed in run.seeds(arm)
    ]
    bound = _task_settings(trials)
    groups: dict[tuple[str, str], list[Trial]] = {}
    repeated: list[Trial] = []
    for trial in trials:
        group = groups.setdefault((_kinds(trial.run)[trial.arm], repr(sorted(_own(trial, bound).items()))), [])
        known = any((other.task, other.seed) == (trial.task, trial.seed) for other in group)
        (repeated if known else group).append(trial)
    arms = list(dict.fromkeys(arm for arm, _ in groups))
    arms.sort(key=lambda arm: _LEADING.index(arm) if arm in _LEADING else len(_LEADING))
    conditions: list[Condition] = []
    for arm in arms:
        own = [tuple(group) for (name, _), group in groups.items() if name == arm]
        settings = [_own(group[0], bound) for group in own]
        for special, values, alike in zip(_special(settings, own), settings, own, strict=True):
            conditions.append(Condition(arm, special, values, alike))
    return Comparison(tuple(runs), tuple(tasks), tuple(conditions), bound, tuple(repeated))


def _kinds(run: Run) -> dict[str, str]:
    """What the condition of each arm of a run is called: arms that differ in nothing but their seed are of one kind,
    that of the run's own where its settings are theirs, else called like the first without its seed."""
    own = next((arm for arm in run.arms if arm not in run.changes), None)
    names = {} if own is None else {"[]": own}
    kinds: dict[str, str] = {}
    for arm in run.arms:
        changes = dict(run.changes.get(arm, {}))
        name = arm.removesuffix(f"_{changes.pop('seed')}") if "seed" in changes else arm
        kinds[arm] = names.setdefault(repr(sorted(changes.items())), name or arm)
    return kinds


def _own(trial: Trial, bound: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in acting(trial).items() if key not in bound}


def acting(trial: Trial) -> dict[str, Any]:
    """The settings that can change what this arm does, without seeds, names, folders and the data."""
    settings = trial.run.arm_settings(trial.arm)
    learning = settings.get("learner.algorithm")
    without: tuple[str, ...] = tuple(f"learner.{name}." for name in ALGORITHMS if name != learning)
    if settings.get("generator.count") == 0:
        without += _GENERATION
    elif settings.get("guidance.kind") == "none":
        without += ("guidance.",)
    return {
        key: value
        for key, value in settings.items()
        if key not in _IGNORED
        and key not in _DATA
        and key.rpartition(".")[2] != "seed"
        and (key in ("generator.count", "guidance.kind") or not key.startswith(without))
        and not (key == "guidance.kind" and settings.get("generator.count") == 0)
    }


def differences(comparison: Comparison) -> dict[str, list[Any]]:
    """Settings that differ between conditions, with the value of each condition; ``None`` also where none acts."""
    keys = dict.fromkeys(key for condition in comparison.conditions for key in condition.settings)
    return {key: [c.settings.get(key) for c in comparison.conditions] for key in keys if _varies(comparison, key)}


def _varies(comparison: Comparison, key: str) -> bool:
    return len({repr(c.settings[key]) for c in comparison.conditions if key in c.settings}) > 1


def _tasks(runs: Sequence[Run]) -> list[Task]:
    """The task of every run; one that has no score yet takes the scale of the others on its data."""
    found: list[Task] = []
    for run in runs:
        environment, data = _environment(run, runs), _data(run)
        alike = [other for other in runs if (_environment(other, runs), _data(other)) == (environment, data)]
        scales = {other.scale for other in alike} - {"raw"}
        found.append(Task(environment, data, next(iter(scales), "raw")))
    return found


def _environment(run: Run, runs: Sequence[Run]) -> str:
    """The simulator's id: the summary's, else the one configured, else that of another run on the same dataset."""
    name = run.settings.get("data.environment")
    known = run.dataset("environment") or (ALIASES.get(str(name), str(name)) if name else None)
    if known is not None:
        return known
    alike = (r for r in runs if r.settings.get("data.dataset") == run.settings.get("data.dataset"))
    return next((found for r in alike if (found := r.dataset("environment"))), _data(run))


def _data(run: Run) -> str:
    given = run.settings.get("data.dataset") or run.settings.get("data.file")
    if given:
        text = str(given)
        return text if text.startswith(MINARI) else PurePath(text).name
    level, transitions = run.settings.get("data.level"), run.settings.get("data.transitions")
    return f"{level} data, {int(transitions or 0):,} transitions collected"


def _task_settings(trials: Sequence[Trial]) -> dict[str, dict[Task, Any]]:
    """Settings with one value on every task, but not the same on all: they go with the task, not with a condition."""
    values: dict[str, dict[Task, set[str]]] = {}
    first: dict[str, dict[Task, Any]] = {}
    for trial in trials:
        for key, value in acting(trial).items():
            values.setdefault(key, {}).setdefault(trial.task, set()).add(repr(value))
            first.setdefault(key, {}).setdefault(trial.task, value)
    found: dict[str, dict[Task, Any]] = {}
    for key, by_task in values.items():
        if all(len(own) == 1 for own in by_task.values()) and len(set().union(*by_task.values())) > 1:
            found[key] = first[key]
    return found


def _special(settings: Sequence[Mapping[str, Any]], groups: Sequence[Sequence[Trial]]) -> list[str]:
    """What is special to each condition of one arm: its settings, else the names of its runs, else a letter."""
    if len(settings) == 1:
        return [""]
    keys = dict.fromkeys(key for values in settings for key in values)
    varying = [key for key in keys if len({repr(values.get(key)) for values in settings}) > 1]
    if len(varying) <= _MOST_IN_LABEL:
        names = _short(varying)
        special = [", ".join(f"{names[key]} {show(v.get(key))}" for key in varying) for v in settings]
    else:
        special = [_stem(trial.run.name for trial in group) for group in groups]
    if len(set(special)) < len(special):
        special = [ascii_uppercase[i % 26] * (1 + i // 26) for i in range(len(settings))]
    return special


def _short(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each dotted key, and the part before it where that alone is not enough."""
    leaves = [key.rpartition(".")[2] for key in keys]
    return {
        key: leaf.replace("_", " ") if leaves.count(leaf) == 1 else ".".join(key.split(".")[-2:])
        for key, leaf in zip(keys, leaves, strict=True)
    }


def _stem(names: Iterable[str]) -> str:
    """The names of runs without a seed at the end: ``a-seed0`` and ``a-seed1`` give ``a``."""
    stems = list(dict.fromkeys(re.sub(r"[-_. ]*(seed|s)[-_. ]*\d+$", "", name) or name for name in names))
    return " / ".join(stems) if len(stems) <= _MOST_IN_LABEL else f"{stems[0]} and others"


def show(value: Any) -> str:
    """A setting's value as text."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and abs(value) >= 10_000:
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)
