"""What must be known before the figures of a comparison are believed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from raydiff.comparison.conditions import Comparison, Task, Trial, show
from raydiff.comparison.runs import Run
from raydiff.findings import count

_FEW_SEEDS = 10
_FEW = (
    "Intervals over fewer than ten seeds are too narrow: those over 4, 5 and 8 seeds hold the true mean of normally "
    "distributed scores in about 80 %, 84 % and 89 % of cases, not 95 %."
)
# The percentile bootstrap of 2 or 3 values ends at the smallest and the largest of them: each resample of equal values
# has probability 1/4 or 1/27, more than 2.5 %. Their range holds the median with probability 1 - 2 / 2^n.
_RANGE_SEEDS = {2: "a half", 3: "three quarters"}
_PROTOCOL = {
    "evaluation.final_episodes": "final evaluation episodes",
    "evaluation.episodes": "evaluation episodes during training",
    "evaluation.seed": "first evaluation seed",
    "learner.updates": "learner updates",
}


def cautions(comparison: Comparison) -> list[str]:
    """Sentences for the head of the page, most serious first; every one follows from the runs at hand."""
    lines = [*_versions(comparison), *_protocols(comparison), *_seeds(comparison)]
    unfinished = [run.name for run in comparison.runs if not run.finished]
    if unfinished:
        lines.append(f"Not finished: {', '.join(unfinished)}. Their curves are drawn as far as they go.")
    if len(comparison.scales()) > 1:
        lines.append("The runs are scored on different scales, which stand in tables and figures of their own.")
    if comparison.repeated:
        twice = Counter(comparison.condition_of(t.run, t.arm).label for t in comparison.repeated)
        lines.append(
            f"Left out: {', '.join(f'{label} of ' + count(times, 'run') for label, times in twice.items())}. These "
            "repeat an arm of a run named before them, with the same seed and every setting that acts on it, and one "
            "seed must not count twice."
        )
    return lines


def _versions(comparison: Comparison) -> list[str]:
    lines: list[str] = []
    for name in ("raydiff", "torch"):
        found = _groups(comparison.runs, lambda run, name=name: run.version(name))  # type: ignore[misc]
        if len(found) > 1:
            lines.append(f"The runs were made by different versions of {name}: {_listing(found)}.")
    for task in comparison.tasks:
        runs = _runs(comparison, task)
        for key, what in (("mujoco", "MuJoCo versions"), ("hash", "datasets (by their hash)")):
            found = _groups(runs, lambda run, key=key: (run.dataset(key) or "")[:12] or None)  # type: ignore[misc]
            if len(found) > 1:
                lines.append(f"{task.title}: the runs have different {what}: {_listing(found)}.")
    return lines


def _protocols(comparison: Comparison) -> list[str]:
    lines: list[str] = []
    for task in comparison.tasks:
        for key, what in _PROTOCOL.items():
            found: dict[str, list[str]] = {}
            for condition in comparison.of(task):
                for trial in condition.of(task):
                    found.setdefault(show(_setting(trial, key)), []).append(trial.run.name)
            if len(found) > 1:
                lines.append(f"{task.title}: the number of {what} differs: {_listing(found)}.".replace(
                    "number of first evaluation seed", "first evaluation seed"))  # fmt: skip
    return lines


def _seeds(comparison: Comparison) -> list[str]:
    counts = {len(c.seeds(task)) for task in comparison.tasks for c in comparison.of(task)}
    lines: list[str] = []
    if 1 in counts:
        one = "Every condition has" if counts == {1} else "Some conditions have"
        lines.append(
            f"{one} a single seed. Its intervals run over evaluation episodes (or blocks) of that one run and say nothing "
            "of other seeds: repeat the runs with other seeds before concluding anything."
        )
    lines += [
        f"With {n} seeds an interval is the range of the {n}: it holds the true middle with probability {chance}, not 95 %."
        for n, chance in _RANGE_SEEDS.items()
        if n in counts
    ]
    if any(4 <= n < _FEW_SEEDS for n in counts):
        lines.append(_FEW)
    if len(counts) > 1:
        lines.append(f"The conditions have different numbers of seeds: {', '.join(str(n) for n in sorted(counts))}.")
    return lines


def _groups(runs: Iterable[Run], value: Callable[[Run], str | None]) -> dict[str, list[str]]:
    """Names of runs by a fact about them; runs that do not know it are left out."""
    found: dict[str, list[str]] = {}
    for run in runs:
        fact = value(run)
        if fact is not None:
            found.setdefault(fact, []).append(run.name)
    return found


def _listing(groups: dict[str, list[str]]) -> str:
    return "; ".join(f"{value} in {', '.join(dict.fromkeys(names))}" for value, names in groups.items())


def _runs(comparison: Comparison, task: Task) -> list[Run]:
    return [run for run, own in zip(comparison.runs, comparison.run_tasks, strict=True) if own == task]


def _setting(trial: Trial, key: str) -> object:
    return trial.run.arm_settings(trial.arm).get(key)
