"""All learners on real data alone: curves over the updates, and where they end, by interquartile means over seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from raydiff.config import Config
from raydiff.evaluation.statistics import Estimate, iqm_over_runs, probability_of_improvement
from raydiff.figures import GREY, new_figure, style, thousands
from raydiff.studies.api import Condition, Scale, Study
from raydiff.studies.figure import COLOURS, MARKERS
from raydiff.studies.findings import text
from raydiff.studies.results import Results, Row

LEARNERS = {
    "td3_bc": "TD3+BC",
    "iql": "IQL",
    "rebrac": "ReBRAC",
    "cql": "CQL",
    "diffusion_ql": "Diffusion-QL",
    "swg": "SWG",
    "aepo": "AEPO",
    "qgpo": "QGPO",
}
REFERENCE = "td3_bc"
POINTS = 10
SEED = 0  # of the bootstrap
FEWEST = 4  # seeds of two learners that can be told apart
PRESET = "{}/maze2d-umaze.yaml"


def conditions(config: Config) -> Sequence[Condition]:
    """Every learner with the settings of its own preset, which are those of a maze, or with general ones on other data."""
    found = []
    for name, label in LEARNERS.items():
        updates = round(config.learner.updates * STAGED.get(name, 1.0))
        settings: dict[str, Any] = {
            "generator.count": 0,
            "learner.updates": updates,
            "evaluation.every": max(1, updates // POINTS),
        }
        if name == "swg":
            settings["learner.swg.order"] = "joint"
        if config.data.dataset is not None:
            settings |= {"data.reward_normalization": "return_range", **OFF_THE_MAZE.get(name, {})}
        found.append(Condition(name, label, "", settings, preset=PRESET.format(name)))
    return found


STAGED = {"aepo": 2.5, "qgpo": 1.6}
"""Those that train one network after the other have as many times the updates, so that critics have as many as all."""
OFF_THE_MAZE: dict[str, dict[str, Any]] = {
    "rebrac": {
        "learner.normalize_observations": False,
        "learner.rebrac.actor_penalty": 0.1,
        "learner.rebrac.critic_penalty": 0.1,
    },
    "cql": {"learner.cql.lagrange": False},
    "swg": {"learner.swg.expectile": 0.7},
    "aepo": {
        "learner.learning_rate_schedule": "published",
        "learner.aepo.expectile": 0.7,
        "learner.aepo.guidance_scale": 1.0,
    },
    "qgpo": {"learner.qgpo.critic_beta": 1.0},
}


# ---------------------------------------------------------------------------------------------------------- the figures
def final(row: Row) -> Estimate | None:
    """Interquartile mean of the last policies' scores over seeds, with its bootstrap interval."""
    scores = row.values("score")
    return iqm_over_runs([scores], SEED) if scores else None


def curve(row: Row) -> list[tuple[float, Estimate]]:
    """Updates, and the interquartile mean of the scores over the seeds that were scored there."""
    scores: dict[float, list[float]] = {}
    for run in row.runs.values():
        at, values = run.get("scored_at"), run.get("curve")
        if isinstance(at, list) and isinstance(values, list):
            for update, value in zip(at, values, strict=True):
                scores.setdefault(update, []).append(value)
    return [(update, iqm_over_runs([values], SEED)) for update, values in sorted(scores.items())]


def improvement(rows: Sequence[Row], references: Sequence[Row]) -> Estimate | None:
    """How likely a run ends above one of the reference on the same dataset, ties by half; over all datasets."""
    pairs = [(row.values("score"), other.values("score")) for row, other in zip(rows, references, strict=True)]
    if not pairs or not all(ours and theirs for ours, theirs in pairs):
        return None
    return probability_of_improvement([ours for ours, _ in pairs], [theirs for _, theirs in pairs], SEED)


def everywhere(results: Results) -> dict[str, list[Row]]:
    """The rows of each learner that has normalised scores on all of several datasets."""
    groups = list(dict.fromkeys(row.group for row in results.rows))
    found = {
        label: [row for row in results.rows if row.label == label and all(row.values("normalised") or [0])]
        for label in LEARNERS.values()
    }
    return {label: rows for label, rows in found.items() if len(rows) == len(groups) > 1}


def reference(results: Results, group: str) -> Row | None:
    return next((row for row in results.group(group) if row.label == LEARNERS[REFERENCE]), None)


# --------------------------------------------------------------------------------------------------------------- table
HEADING = (
    "learner",
    "seeds",
    "final score, IQM",
    f"P(above {LEARNERS[REFERENCE]})",
    "mean",
    "ms per update",
    "seconds",
)


def table(results: Results) -> list[str]:
    """Where the learners end, by dataset, and over all datasets where scores have one scale."""
    lines = ["| " + " | ".join(HEADING) + " |", "|---|---|" + "---|" * (len(HEADING) - 2)]
    for group in dict.fromkeys(row.group for row in results.rows):
        behaviour = [value for row in results.group(group) for value in row.values("behaviour")]
        own = f" (behaviour {np.mean(behaviour):.1f})" if behaviour else ""
        lines.append(f"| **{group}**{own} |" + " |" * (len(HEADING) - 1))
        lines += [_line(row, reference(results, group)) for row in results.rows if row.group == group]
    overall = everywhere(results)
    if overall:
        lines.append("| **all datasets** |" + " |" * (len(HEADING) - 1))
        lines += [_overall(label, rows, overall.get(LEARNERS[REFERENCE])) for label, rows in overall.items()]
    return lines


def _line(row: Row, other: Row | None) -> str:
    found, above = final(row), improvement([row], [other]) if other is not None and other is not row else None
    mean, cost, seconds = (row.estimate(name) for name in ("score", "update_ms", "seconds"))
    cells = [row.label, str(len(row.runs)) if row.runs else "not run", _text(found, 1), _text(above, 2), _text(mean, 1)]
    cells += ["" if one is None else f"{one.value:.{digits}f}" for one, digits in ((cost, 1), (seconds, 0))]
    return "| " + " | ".join(cells) + " |"


def _overall(label: str, rows: Sequence[Row], others: Sequence[Row] | None) -> str:
    scores = [row.values("score") for row in rows]
    above = improvement(rows, others) if others is not None and label != LEARNERS[REFERENCE] else None
    cells = [label, str(sum(map(len, scores))), _text(iqm_over_runs(scores, SEED), 1), _text(above, 2), "", "", ""]
    return "| " + " | ".join(cells) + " |"


def _text(found: Estimate | None, digits: int) -> str:
    return "" if found is None else text(found, digits)


# -------------------------------------------------------------------------------------------------------------- figure
def draw(results: Results) -> Figure | None:
    """A row of panels per dataset: the curves with their intervals, and the final scores with every seed's."""
    groups = [group for group in dict.fromkeys(row.group for row in results.rows) if results.group(group)]
    if not groups:
        return None
    figure = new_figure(11.5, 4.2 * len(groups))
    grid = figure.add_gridspec(len(groups), 2, width_ratios=[2.2, 1])
    for place, group in enumerate(groups):
        _curves(figure.add_subplot(grid[place, 0]), results.group(group), group)
        _finals(figure.add_subplot(grid[place, 1]), results.group(group))
    return figure


def _look(row: Row) -> tuple[str, str]:
    place = list(LEARNERS.values()).index(row.label)
    return (*COLOURS, GREY)[place], (*MARKERS, "*")[place]


def _curves(axes: Axes, rows: Sequence[Row], group: str) -> None:
    for row in rows:
        colour, marker = _look(row)
        points = curve(row)
        updates, values = [update for update, _ in points], [found.value for _, found in points]
        axes.plot(updates, values, marker + "-", color=colour, label=row.label, linewidth=1.6, markersize=4)
        known = [(u, found.low, found.high) for u, found in points if found.low is not None and found.high is not None]
        if known:
            where, lows, highs = zip(*known, strict=True)
            axes.fill_between(where, lows, highs, color=colour, alpha=0.1, linewidth=0)
    _behaviour(axes.axhline, rows)
    style(axes, group, "updates", "normalised score" if all(_normalised(row) for row in rows) else "return")
    axes.xaxis.set_major_formatter(FuncFormatter(thousands))
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _finals(axes: Axes, rows: Sequence[Row]) -> None:
    for place, row in enumerate(rows):
        found, (colour, marker) = final(row), _look(row)
        if found is None:
            continue
        if found.low is not None and found.high is not None:
            axes.plot([found.low, found.high], [place, place], color=colour, linewidth=1.6)
        axes.plot(found.value, place, marker, color=colour, markersize=6)
        axes.plot(row.values("score"), [place] * len(row.values("score")), "|", color=colour, alpha=0.6)
    _behaviour(axes.axvline, rows)
    style(axes, "last policies", "IQM and 95 % interval over seeds", "")
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [row.label for row in rows], fontsize=8)


def _behaviour(line: Callable[..., object], rows: Sequence[Row]) -> None:
    """What the data themselves score."""
    scores = [value for row in rows for value in row.values("behaviour")]
    if scores:
        line(float(np.mean(scores)), color=GREY, linestyle="--", linewidth=1, label="behaviour (the data)")


def _normalised(row: Row) -> bool:
    return all(row.values("normalised"))


# ------------------------------------------------------------------------------------------------------------ findings
def findings(results: Results) -> list[str]:
    """Per dataset: who leads, who is told apart from the reference, and who ends below the data."""
    lines = []
    for group in dict.fromkeys(row.group for row in results.rows):
        rows = [row for row in results.group(group) if row.values("score")]
        if not rows:
            continue
        ranked = sorted(rows, key=lambda row: _iqm(row), reverse=True)
        lines.append(f"{group}: highest {_named(ranked[0])}, lowest {_named(ranked[-1])}.")
        lines += _apart(group, rows, reference(results, group))
        behaviour = float(np.mean([value for row in rows for value in row.values("behaviour")] or [-np.inf]))
        below = [_named(row) for row in rows if _iqm(row) <= behaviour]
        if below:
            lines.append(f"{group}: not above the data's own score of {behaviour:.1f}: {', '.join(below)}.")
    return lines


def _apart(group: str, rows: Sequence[Row], other: Row | None) -> list[str]:
    """Learners whose interval of the probability of ending above the reference leaves out one half; with fewer seeds
    than it takes to tell two learners apart (all above all is 3 % chance with four of each), none."""
    found = {
        row.label: improvement([row], [other])
        for row in rows
        if other is not None and row is not other and min(len(row.runs), len(other.runs)) >= FEWEST
    }
    told = {
        "above": [label for label, p in found.items() if p is not None and p.low is not None and p.low > 0.5],
        "below": [label for label, p in found.items() if p is not None and p.high is not None and p.high < 0.5],
    }
    return [
        f"{group}: {', '.join(labels)} {'end' if len(labels) > 1 else 'ends'} {where} {LEARNERS[REFERENCE]} (the interval "
        "of the probability leaves out one half)."
        for where, labels in told.items()
        if labels
    ]


def _iqm(row: Row) -> float:
    found = final(row)
    return -np.inf if found is None else found.value


def _named(row: Row) -> str:
    return f"{row.label} at {_text(final(row), 1)}"


NOTE = (
    "Interquartile means over seeds (without the lowest and the highest quarter) with 95 % bootstrap intervals in "
    f"brackets, stratified by dataset; P(above {LEARNERS[REFERENCE]}) is the probability that a run ends above one of "
    f"{LEARNERS[REFERENCE]}, ties by half; means have Student's intervals. Scores are those of the last policies. AEPO and "
    "QGPO train one network after the other and have as many times the updates that critics have as many as all; until "
    "the last stage their curves are the behaviour's. SWG trains its networks together. Milliseconds per update are means "
    "over the whole run, with what a stage computes as it begins."
)

# What 80 runs (5 seeds on two datasets) of all learners take on two cores is then less than an hour.
SMALL = {
    "scale": "small",
    "learner.updates": 5000,
    "learner.hidden": [128, 128],
    "evaluation.episodes": 10,
    "evaluation.final_episodes": 20,
}

STUDY = Study(
    "learners",
    "All learners on real data alone: learning curves and final scores, on a maze and on whatever else is given.",
    conditions,
    findings,
    {
        "tiny": Scale(PRESET.format(REFERENCE), {"scale": "tiny"}),
        "small": Scale(PRESET.format(REFERENCE), SMALL),
        "paper": Scale(PRESET.format(REFERENCE)),
    },
    ("score", "update_ms", "seconds"),
    note=NOTE,
    table=table,
    draw=draw,
    across=True,
)
