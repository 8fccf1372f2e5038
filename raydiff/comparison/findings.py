"""What each picture of a comparison shows, in one or two sentences computed from the numbers that it draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raydiff.comparison.conditions import Comparison, Task
from raydiff.comparison.measures import (
    QUALITY,
    Score,
    band,
    final_scores,
    mean_rates,
    over_seeds,
    score_curve,
    score_key,
)
from raydiff.comparison.scores import DECIDED, Pair, tasks_of
from raydiff.findings import best, count, listing, number
from raydiff.timeline import interval


def curves_show(comparison: Comparison, scale: str) -> str:
    """Where the mean curve of each condition stands at its last common evaluation, and where it was at its highest."""
    lines: list[str] = []
    for task in tasks_of(comparison, scale):
        ends: list[tuple[float, str]] = []
        for condition in comparison.of(task):
            found = band(condition, task, score_curve, "episodes")
            if found is None or not len(found.curve.updates):
                continue
            mean, updates = found.curve.mean, found.curve.updates
            top = int(mean.argmax())
            text = f"{condition.label} ends at {number(mean[-1])}"
            if mean[top] - mean[-1] > found.curve.high[-1] - found.curve.low[-1]:
                text += f" (down from {number(mean[top])} at {updates[top]:,.0f} updates)"
            ends.append((float(mean[-1]), text))
        if ends:
            ends.sort(reverse=True)
            lines.append(f"{task.environment}: {listing([text for _, text in ends])}.")
    return " ".join(lines)


def finals_show(comparison: Comparison, scale: str) -> str:
    """The highest mean of each task, and whether its interval is clear of the next one's."""
    lines: list[str] = []
    for task in tasks_of(comparison, scale):
        found = {c.label: s for c in comparison.of(task) if (s := final_scores(c, task, score_key(task))) is not None}
        if found:
            units = dict.fromkeys(score.unit for score in found.values())
            lines.append(f"{task.environment}: {best(found, 'over ' + ' and '.join(units))}")
    return " ".join(lines)


def pairs_show(found: Sequence[Pair]) -> str:
    """How many pairs are told apart seed by seed, and which; or that too few seeds are shared for that."""
    if not found:
        return ""
    known = [pair for pair in found if pair.chance is not None]
    if not known:
        return "No two conditions share a seed, so no pair is compared seed by seed."
    least = min(2 * 0.5**pair.shared for pair in known)
    if least >= DECIDED:
        shared = max(pair.shared for pair in known)
        return (
            f"No pair can be told apart: with {count(shared, 'shared seed')} even a difference of one sign throughout "
            f"has p = {least:.2g}."
        )
    decided = [pair for pair in known if pair.decided]
    names = []
    for pair in decided:
        first, second = (pair.first, pair.second) if pair.won > pair.shared / 2 else (pair.second, pair.first)
        names.append(f"{first.label} above {second.label}")
    which = f": {listing(names)}" if names else ""
    return (
        f"{len(decided)} of {count(len(known), 'pair')} {'is' if len(decided) == 1 else 'are'} told apart seed by seed "
        f"(p < {DECIDED}){which}. Nothing is corrected for the number of pairs."
    )


def quality_shows(comparison: Comparison, task: Task) -> str:
    """The mean of each measure over the run, condition by condition."""
    lines: list[str] = []
    for measure, words, digits in zip(QUALITY, _QUALITY_WORDS, (3, 3, 0), strict=True):
        means: dict[str, Score] = {}
        for condition in comparison.of(task):
            found = band(condition, task, measure.curve, measure.unit)
            if found is not None:
                means[condition.label] = over_seeds({s: float(c.mean.mean()) for s, c in found.seeds.items()})
        if means:
            lines.append(f"{words}: {_values(means, digits)}.")
    return " ".join(lines)


_QUALITY_WORDS = (
    "Error of synthetic steps over that of predicting no change, mean over the run",
    "Mean squared distance of actions from the policy",
    "Mean age of the sampled data in updates",
)


def throughput_shows(comparison: Comparison, task: Task) -> str:
    """Speeds and waiting of the conditions that generate."""
    lines: list[str] = []
    found = {condition.label: mean_rates(condition, task) for condition in comparison.of(task)}
    for name, words, factor, digits in (
        ("trajectories", "Trajectories per second", 1.0, 0),
        ("updates", "updates per second", 1.0, 0),
        ("overlap", "percent of the learning while generators worked", 100.0, 0),
    ):
        values = {label: own[name] for label, own in found.items() if name in own}
        if values:
            lines.append(f"{words}: {_values(values, digits, factor)}")
    return "; ".join(lines) + "." if lines else ""


def timelines_show(comparison: Comparison) -> str:
    """How long the runs took."""
    lengths: dict[str, float] = {}
    for run in comparison.runs:
        pairs = [pair for record in run.records if (pair := interval(record)) is not None]
        moments = [(r.get("time") or {}).get("at") for r in run.records]
        times = [t for pair in pairs for t in pair] + [t for t in moments if t is not None]
        if times:
            lengths[run.name] = max(times) - min(times)
    if not lengths:
        return ""
    longest, shortest = max(lengths, key=lengths.__getitem__), min(lengths, key=lengths.__getitem__)
    if f"{lengths[longest]:,.0f}" == f"{lengths[shortest]:,.0f}":
        return f"Every run took {lengths[longest]:,.0f} s from the first record to the last."
    return (
        f"The runs took between {lengths[shortest]:,.0f} s ({shortest}) and {lengths[longest]:,.0f} s ({longest}), from "
        "the first record to the last."
    )


def _values(means: Mapping[str, Score], digits: int, factor: float = 1.0) -> str:
    return listing([f"{label} {number(score.mean * factor, digits)}" for label, score in means.items()])
