"""Sentences about a study, computed from its numbers: who wins, ties and loses, and what goes with what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from raydiff.evaluation.statistics import Estimate
from raydiff.studies.measures import MEASURES, Column
from raydiff.studies.results import Results, Row, Verdict, difference, verdict

PLURAL: dict[Verdict, str] = {"win": "wins", "tie": "ties", "loss": "losses"}
LEAST_FOR_CORRELATION = 4


def best(rows: Sequence[Row], measure: str = "score") -> Row | None:
    """The row of the highest mean, the first of equals; None without any."""
    means = [(found.value, row) for row in rows if (found := row.estimate(measure)) is not None]
    return max(means, key=lambda pair: pair[0])[1] if means else None


def against(
    rows: Sequence[Row], reference: Row, measure: str = "score", measures: Mapping[str, Column] = MEASURES
) -> dict[Verdict, list[Row]]:
    """The rows by how they do against ``reference``; those without the measure, and itself, are left out. ``measures``
    are the study's."""
    found: dict[Verdict, list[Row]] = {"win": [], "tie": [], "loss": []}
    for row in rows:
        if row.name != reference.name and row.values(measure):
            compared = difference(row.values(measure), reference.values(measure))
            found[verdict(compared, measures[measure].better is not False)].append(row)
    return found


def tally(
    rows: Sequence[Row], reference: Row, measure: str = "score", measures: Mapping[str, Column] = MEASURES
) -> str:
    """``against`` as a sentence."""
    found = against(rows, reference, measure, measures)
    if not any(found.values()):
        return ""
    parts = [
        f"{len(some)} {PLURAL[kind] if len(some) != 1 else kind}"
        + (f" ({'; '.join(named(row, measure, measures) for row in some)})" if some and kind != "tie" else "")
        for kind, some in found.items()
    ]
    label = measures[measure].label
    return f"{label[0].upper()}{label[1:]} against {named(reference, measure, measures)}: {', '.join(parts)}."


def named(row: Row, measure: str = "score", measures: Mapping[str, Column] = MEASURES) -> str:
    """The condition with its mean and interval."""
    found = row.estimate(measure)
    return f"{full_label(row)} at {text(found, measures[measure].digits)}" if found is not None else full_label(row)


def full_label(row: Row) -> str:
    return f"{row.group}, {row.label}" if row.group != row.label else row.label


def text(found: Estimate, digits: int) -> str:
    """A mean with its interval."""
    mean = f"{found.value:,.{digits}f}"
    if found.low is None or found.high is None:
        return mean
    return f"{mean} [{found.low:,.{digits}f}, {found.high:,.{digits}f}]"


def together(rows: Sequence[Row], x: str, y: str = "score") -> str:
    """Spearman's correlation of the means of two measures over conditions, with its p."""
    both = [(a.value, b.value) for row in rows if (a := row.estimate(x)) and (b := row.estimate(y))]
    first, second = (np.array(values) for values in zip(*both, strict=True)) if both else (np.array([]), np.array([]))
    if len(both) < LEAST_FOR_CORRELATION or np.ptp(first) == 0 or np.ptp(second) == 0:
        return ""
    found = stats.spearmanr(first, second)
    return (
        f"Over the {len(both)} conditions with synthetic data, {MEASURES[x].label} and {MEASURES[y].label} have a rank "
        f"correlation of {found.statistic:+.2f} (p = {found.pvalue:.2g})."
    )


def sweep(rows: Sequence[Row], measure: str, measures: Mapping[str, Column] = MEASURES) -> str:
    """How a measure moves along ``x``: monotone or not, and where it is best."""
    points = sorted((row.x, found.value, row) for row in rows if row.x is not None and (found := row.estimate(measure)))
    if len(points) < 2:
        return ""
    steps = np.diff([value for _, value, _ in points])
    if not steps.any():
        return f"{rows[0].group}: {measures[measure].label} does not change."
    how = "rises" if (steps > 0).all() else "falls" if (steps < 0).all() else "is not monotone"
    first, last = points[0], points[-1]
    line = (
        f"{rows[0].group}: {measures[measure].label} {how} from {first[1]:.{measures[measure].digits}f} at {first[0]:g} "
        f"to {last[1]:.{measures[measure].digits}f} at {last[0]:g}"
    )
    better = measures[measure].better
    if better is None:
        return line + "."
    top = (max if better else min)(points, key=lambda point: point[1])
    return f"{line}; best at {top[0]:g}."


def pays(results: Results, real: str) -> list[str]:
    """Where guided data win, tie and lose against the tuned real-only learner and against unguided data.

    ``real`` is the group whose best mean is the tuned learner. Unguided data are those of the same settings otherwise.
    """
    tuned = best(results.group(real))
    small = [row for row in results.rows if "data.transitions" in row.overrides and row.runs]
    made = [row for row in results.rows if row.runs and row.overrides.get("generator.count") != 0]
    full = [row for row in made if row not in small]
    without = [row for row in full if row.overrides.get("guidance.kind") == "none"]
    guided = [row for row in full if row not in without]
    lines: list[tuple[str, str]] = []
    if tuned is not None:
        lines += [("", _tuned(tuned, results.group(real)))]
        lines += [("Guided data. ", tally(guided, tuned)), ("Unguided data. ", tally(without, tuned))]
    for plain in without:
        lines.append(("Guided data. ", tally([row for row in guided if _unguided(row) == _unguided(plain)], plain)))
    lines += [("With the same learner. ", line) for line in _same_learner(guided, results, real)]
    lines += [("Fewer data. ", _small(small)), ("", together(full, "error"))]
    return [start + line for start, line in lines if line]


def _tuned(row: Row, grid: Sequence[Row]) -> str:
    """What the tuned learner is, how it was chosen, and whether the grid may have been too small for it."""
    edges = [
        key
        for key, value in row.overrides.items()
        if key.startswith("learner.")
        and len(values := {other.overrides.get(key, value) for other in grid}) > 1
        and value in (min(values), max(values))
    ]
    return (
        f"Tuned learner on real data alone: {named(row)}, the best of {len(grid)} settings by mean, chosen on the scores "
        "of this table, which favours it"
        + (f"; {' and '.join(edges)} at the edge of the grid, so a wider one might do better still." if edges else ".")
    )


def _same_learner(guided: Sequence[Row], results: Results, real: str) -> list[str]:
    """Guided data against real data alone with the very same learner: what the data do when nothing is tuned."""
    lines = []
    for other in results.group(real):
        twins = [row for row in guided if _learner(row, results) == _learner(other, results)]
        lines.append(tally(twins, other))
    return lines


def _unguided(row: Row) -> dict[str, object]:
    """What a condition changes besides its guidance."""
    return {key: value for key, value in row.overrides.items() if not key.startswith("guidance.")}


def _learner(row: Row, results: Results) -> dict[str, object]:
    """Settings of the learner in full: those of the study under the condition's own."""
    return {**results.learner, **{key: value for key, value in row.overrides.items() if key.startswith("learner.")}}


def _small(rows: Sequence[Row]) -> str:
    """The same question on fewer data, where they were part of the study."""
    tuned = best([row for row in rows if row.overrides.get("generator.count") == 0])
    made = [row for row in rows if row.overrides.get("generator.count") != 0]
    return tally(made, tuned) if tuned is not None else ""
