"""What each picture of a run shows, in one or two sentences computed from the numbers that it draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from raydiff.figures import error_ratio, evaluations, final_scores, is_warmup, pretty, score_scale, spread_of
from raydiff.metrics import Record, select
from raydiff.timeline import idle_fraction, learner_wait_fraction, training_span

MOST = 4  # things that one sentence lists


class Spread(Protocol):
    """A mean with its interval, None where there is none."""

    @property
    def mean(self) -> float: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...


def curves_show(records: list[Record], arms: list[str], scores: Mapping[str, Any]) -> str:
    """The arm with the highest final score, and whether its interval is clear of the next one's."""
    scale = score_scale(records)
    curves = {arm: evaluations(records, arm, scale) for arm in arms}
    found = {pretty(arm): _Given(value) for arm, value in final_scores(curves, scores, arms, scale).items()}
    over = f"over {spread_of(records, arms)}" if len(found) > 1 else ""
    return f"Last policies: {best(found, over)}" if found else "No arm has ended yet."


def synthetic_shows(records: list[Record], arms: list[str]) -> str:
    """Truth, distance from the policy and age of each arm's synthetic data, means over the run."""
    lines: list[str] = []
    for arm in arms:
        facts: list[str] = []
        errors = [ratio for r in select(records, "audit", arm) if (ratio := error_ratio(r)) is not None]
        if errors:
            facts.append(f"error {number(float(np.mean(errors)), 3)} of persistence in {count(len(errors), 'audit')}")
        blocks = [r for r in select(records, "block", arm) if r.get("deviation") is not None and not is_warmup(r)]
        if blocks:
            mean = float(np.mean([r["deviation"] for r in blocks]))
            facts.append(f"distance {number(mean, 3)} in {count(len(blocks), 'block')} after the warm-up")
        lags = [r["lag"] for r in select(records, "train", arm) if r.get("lag")]
        if lags:
            mean, worst = float(np.mean([lag["mean"] for lag in lags])), max(lag["max"] for lag in lags)
            facts.append(f"{number(mean, 0)} updates old on average, {number(worst, 0)} at most")
        if facts:
            lines.append(f"{pretty(arm)}: {', '.join(facts)}")
    return listing(lines) + "." if lines else ""


def strength_shows(state: Mapping[str, Any]) -> str:
    """Where the automatic strength ended, and how near the actions came to its target."""
    if state.get("target") is None:
        return f"{state['strength']:.3g}, before any guided block came back"
    what = f"actions measured {state['measured']:.4g} for a target of {state['target']:.4g}"
    if state["reached"]:
        return f"{state['strength']:.3g}, at its target ({what})"
    nearest = f"the nearest came at strength {state['best']:.3g}"
    return (
        f"{state['strength']:.3g}, {'unreachable' if state['unreachable'] else 'not reached yet'} ({what}; {nearest})"
    )


def timeline_shows(records: list[Record], arms: list[str]) -> str:
    """How long each arm learned, how much of that it waited, and how idle its generators were."""
    lines: list[str] = []
    for arm in arms:
        span = training_span(records, arm)
        if span is None:
            continue
        waited, idle = learner_wait_fraction(records, arm), idle_fraction(records, arm, "generator", *span)
        facts = [f"learned for {number(span[1] - span[0], 1)} s"]
        facts += [f"waited {100 * waited:.0f} % of it"] if waited is not None else []
        facts += [f"generators idle {100 * idle:.0f} %"] if idle is not None else []
        lines.append(f"{pretty(arm)}: {', '.join(facts)}")
    return listing(lines) + "." if lines else ""


def maze_shows(maze_id: str, groups: Mapping[str, np.ndarray]) -> str:
    """How many trajectories of each group never enter a wall."""
    from raydiff.envs.maze2d import maze_of  # the simulator is imported for mazes only
    from raydiff.envs.registry import canonical

    maze = maze_of(canonical(maze_id))
    shares = {name: float(maze.is_legal(group[..., :2]).all(axis=1).mean()) for name, group in groups.items()}
    said = [f"{pretty(name)} {100 * share:.0f} % of {len(groups[name])}" for name, share in shares.items()]
    return f"Trajectories that never enter a wall: {listing(said)}."


def best(found: Mapping[str, Spread], over: str) -> str:
    """The highest mean, the next one, and whether their intervals ``over`` something overlap."""
    order = sorted(found, key=lambda label: -found[label].mean)
    first = found[order[0]]
    text = f"highest mean {number(first.mean)} {interval_text(first)} for {order[0]}"
    if len(order) == 1:
        return text + "."
    second = found[order[1]]
    text += f", then {number(second.mean)} {interval_text(second)} for {order[1]}"
    if first.low is None or second.high is None:
        return text + "."
    return text + f"; their intervals {over} {'are apart' if first.low > second.high else 'overlap'}."


def interval_text(value: Any, digits: int = 1) -> str:
    """``[low, high]``, or what stands in its place."""
    if value.low is None or value.high is None:
        return "(one seed)"
    return f"[{number(value.low, digits)}, {number(value.high, digits)}]"


def number(value: float, digits: int = 1) -> str:
    """A number as text, without a minus before a zero."""
    text = f"{value:,.{digits}f}"
    return text.removeprefix("-") if float(text.replace(",", "")) == 0.0 else text


def listing(texts: Sequence[str]) -> str:
    """The first few, and how many others there are."""
    rest = f" and {count(len(texts) - MOST, 'other')}" if len(texts) > MOST else ""
    return "; ".join(texts[:MOST]) + rest


def count(amount: int, what: str) -> str:
    return f"{amount:,} {what}{'' if amount == 1 else 's'}"


class _Given:
    """The interval of a record."""

    def __init__(self, value: Mapping[str, Any]) -> None:
        self.mean, self.low, self.high = float(value["mean"]), value.get("low"), value.get("high")
