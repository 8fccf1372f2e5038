"""Intervals, verdicts and sentences on values that are known."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from raydiff.studies.api import Study
from raydiff.studies.figure import study_figure
from raydiff.studies.findings import against, pays, sweep, tally, together
from raydiff.studies.results import Results, Row, difference, mean_over_seeds, verdict
from raydiff.studies.table import markdown, write_results

T_2 = 4.302652729911275  # Student's 97.5 % quantile with two degrees of freedom
T_4 = 2.7764451051977987  # with four

LEARNER = {"learner.algorithm": "td3_bc", "learner.td3_bc.alpha": 2.5, "learner.learning_rate": 1e-3}


def row(name: str, scores: Sequence[float], group: str = "g", x: float | None = None, **more: Any) -> Row:
    overrides: Mapping[str, Any] = more.pop("overrides", {})
    runs = {seed: {"score": score, **more} for seed, score in enumerate(scores)}
    return Row(name, name, group, overrides, x, runs)


def study(columns: tuple[str, ...] = ("score", "error"), x: str = "") -> Study:
    return Study("s", "A question.", lambda _: [], lambda _: [], {}, columns, x)


def test_the_mean_over_seeds_has_students_interval() -> None:
    found = mean_over_seeds([1.0, 2.0, 3.0])
    half = T_2 * 1.0 / 3**0.5
    assert (found.value, found.low, found.high, found.runs) == pytest.approx((2.0, 2.0 - half, 2.0 + half, 3))


def test_one_seed_has_no_interval() -> None:
    found = mean_over_seeds([5.0])
    assert (found.value, found.low, found.high, found.runs) == (5.0, None, None, 1)


def test_no_seed_has_no_mean() -> None:
    with pytest.raises(ValueError, match="at least one"):
        mean_over_seeds([])


def test_the_difference_has_welchs_interval() -> None:
    # Equal variances of 1 and three values each: four degrees of freedom, standard error sqrt(2 / 3).
    found = difference([11.0, 12.0, 13.0], [1.0, 2.0, 3.0])
    half = T_4 * (2 / 3) ** 0.5
    assert (found.value, found.low, found.high) == pytest.approx((10.0, 10.0 - half, 10.0 + half))


def test_the_difference_of_unequal_spreads_has_fewer_degrees_of_freedom() -> None:
    a, b = [0.0, 10.0, 20.0], [1.0, 1.1, 1.2]
    found = difference(a, b)
    first, second = 100.0 / 3, 0.01 / 3
    freedom = (first + second) ** 2 / (first**2 / 2 + second**2 / 2)
    from scipy import stats

    half = stats.t.ppf(0.975, freedom) * (first + second) ** 0.5
    assert freedom < 2.01
    assert (found.low, found.high) == pytest.approx((8.9 - half, 8.9 + half))


def test_equal_values_differ_by_exactly_their_difference() -> None:
    found = difference([3.0, 3.0], [1.0, 1.0])
    assert (found.value, found.low, found.high) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize(
    ("first", "second", "higher", "lower"),
    [
        ([11.0, 12.0, 13.0], [1.0, 2.0, 3.0], "win", "loss"),
        ([1.0, 2.0, 3.0], [11.0, 12.0, 13.0], "loss", "win"),
        ([1.0, 2.0, 3.0], [2.0, 3.0, 4.0], "tie", "tie"),
        ([100.0], [1.0, 2.0], "tie", "tie"),  # a single run proves nothing
    ],
)
def test_verdicts(first: list[float], second: list[float], higher: str, lower: str) -> None:
    found = difference(first, second)
    assert verdict(found) == higher
    assert verdict(found, higher_is_better=False) == lower


def test_rows_are_sorted_by_how_they_do_against_a_reference() -> None:
    reference = row("r", [10.0, 11.0, 12.0])
    better, worse, alike = row("b", [20.0, 21.0, 22.0]), row("w", [0.0, 1.0, 2.0]), row("a", [10.0, 11.0, 13.0])
    unmeasured = Row("n", "n", "g", {}, None, {})
    found = against([reference, better, worse, alike, unmeasured], reference)
    assert {kind: [r.name for r in rows] for kind, rows in found.items()} == {"win": ["b"], "tie": ["a"], "loss": ["w"]}


def test_a_tally_names_wins_and_losses() -> None:
    reference, better = row("r", [10.0, 10.0]), row("b", [20.0, 20.0])
    line = tally([better, row("a", [10.0, 10.0])], reference)
    assert line == "Final score against g, r at 10.0 [10.0, 10.0]: 1 win (g, b at 20.0 [20.0, 20.0]), 1 tie, 0 losses."


def test_a_lower_error_wins() -> None:
    reference = row("r", [0.0, 0.0], error=0.5)
    assert " 1 win " in tally([row("b", [0.0, 0.0], error=0.1)], reference, "error")


def test_a_sweep_says_whether_it_is_monotone_and_where_it_is_best() -> None:
    rising = [row(str(x), [value], x=x) for x, value in ((0.0, 1.0), (1.0, 2.0), (2.0, 4.0))]
    assert sweep(rising, "score") == "g: final score rises from 1.0 at 0 to 4.0 at 2; best at 2."
    bent = [row(str(x), [value], x=x) for x, value in ((0.0, 1.0), (1.0, 5.0), (2.0, 4.0))]
    assert sweep(bent, "score") == "g: final score is not monotone from 1.0 at 0 to 4.0 at 2; best at 1."
    assert sweep(bent[:1], "score") == ""
    assert sweep([row(str(x), [1.0], x=x) for x in (0.0, 1.0)], "score") == "g: final score does not change."


def test_correlation_over_conditions() -> None:
    rows = [row(str(i), [10.0 - i], error=0.1 * i) for i in range(5)]
    assert "rank correlation of -1.00" in together(rows, "error")
    assert together(rows[:3], "error") == ""


def results() -> Results:
    real = "real data alone"
    return Results(
        "where-it-pays",
        "A question.",
        [
            row("real-weak", [20.0, 21.0, 22.0], real, overrides={"generator.count": 0, "learner.td3_bc.alpha": 10.0}),
            row("real-base", [10.0, 11.0, 12.0], real, overrides={"generator.count": 0}),
            row("unguided", [4.0, 5.0, 6.0], "unguided", error=0.1, overrides={"guidance.kind": "none"}),
            row("guided", [14.0, 15.0, 16.0], "guided", error=0.1),
            row("weak", [14.0, 15.0, 17.0], "guided", error=0.1, overrides={"learner.td3_bc.alpha": 10.0}),
            Row("length-9", "length 9", "window length", {}, None, {}, {0: "it broke"}),
        ],
        {"seeds": 3},
        LEARNER,
    )


def test_guided_data_are_held_against_the_best_real_only_learner_and_the_untuned_one() -> None:
    lines = pays(results(), "real data alone")
    tuned = next(
        line for line in lines if line.startswith("Guided data. Final score against real data alone, real-weak")
    )
    assert "0 wins, 0 ties, 2 losses (guided at 15.0" in tuned
    plain = next(line for line in lines if line.startswith("Guided data. Final score against unguided"))
    assert "1 win (guided at 15.0 [12.5, 17.5]), 0 ties, 0 losses" in plain, "another learner's run is not among them"
    weak, base = (line for line in lines if line.startswith("With the same learner."))
    assert "real-weak" in weak
    assert "1 loss (guided, weak at 15.3" in weak
    assert "real-base" in base
    assert "1 win (guided at 15.0" in base
    assert any("best of 2 settings" in line and "learner.td3_bc.alpha" not in line for line in lines)


def test_a_tuned_learner_at_the_edge_of_its_grid_is_said_to_be_there() -> None:
    rows = [
        row(f"a{alpha}", [score, score], "real", overrides={"generator.count": 0, "learner.td3_bc.alpha": alpha})
        for alpha, score in ((1.0, 5.0), (2.0, 7.0), (4.0, 6.0))
    ]
    inside = pays(Results("s", "t", rows, {}), "real")[0]
    assert "real, a2.0 at 7.0" in inside
    assert "edge" not in inside
    assert "learner.td3_bc.alpha at the edge of the grid" in pays(Results("s", "t", rows[:2], {}), "real")[0]


def test_without_real_runs_nothing_is_claimed_about_them() -> None:
    only = Results("s", "t", [results().rows[3]], {}, LEARNER)
    assert pays(only, "real data alone") == []


def test_the_table_has_every_condition_its_intervals_and_what_failed() -> None:
    text = markdown(results(), study(), ["Something."])
    lines = text.splitlines()
    assert "| condition | seeds | final score | audited error |" in lines
    half = T_2 / 3**0.5
    assert f"| guided | 3 | 15.0 [{15 - half:.1f}, {15 + half:.1f}] | 0.100 [0.100, 0.100] |" in lines
    assert "| length 9 | not run |  |  |" in lines
    assert "- length 9, seed 0: it broke" in lines
    assert "- Something." in lines
    assert "- seeds: 3" in lines
    assert any("learner.td3_bc.alpha=2.5" in line for line in lines)
    assert lines.index("| **unguided** | | | |") < lines.index("| **guided** | | | |")


def test_results_are_written_in_full(tmp_path: Path) -> None:
    files = write_results(results(), study(), tmp_path, ["Something."])
    assert [path.name for path in files] == ["table.md", "results.json"]
    data = json.loads(files[1].read_text())
    guided = next(c for c in data["conditions"] if c["name"] == "guided")
    assert [run["score"] for run in guided["runs"]] == [14.0, 15.0, 16.0]
    assert guided["means"]["score"]["value"] == 15.0
    assert guided["means"]["score"]["low"] == pytest.approx(15 - T_2 / 3**0.5)
    assert data["findings"] == ["Something."]


def test_series_are_averaged_entry_by_entry() -> None:
    runs = {0: {"error_by_step": [1.0, 2.0]}, 1: {"error_by_step": [3.0, 6.0]}}
    found = Row("a", "a", "g", {}, None, runs).series("error_by_step")
    assert [entry.value for entry in found] == [2.0, 4.0]


def test_dots_curves_and_steps_are_drawn(tmp_path: Path) -> None:
    figure = study_figure(results(), study())
    assert figure is not None
    assert [a.get_title(loc="left") for a in figure.axes] == ["final score", "audited error"]
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["real data alone: real-weak", "real data alone: real-base", "unguided", "guided", "guided: weak"]
    curves = Results("s", "t", [row(str(x), [x, x + 1], x=x, error_by_step=[0.1, 0.2]) for x in (1.0, 2.0)])
    figure = study_figure(curves, study(("score", "error_by_step"), "x"))
    assert figure is not None
    assert [a.get_title(loc="left") for a in figure.axes] == ["final score", "Error against the simulator by step"]
    assert list(figure.axes[0].lines[0].get_ydata()) == [1.5, 2.5]


def test_nothing_is_drawn_of_nothing() -> None:
    assert study_figure(Results("s", "t", []), study()) is None
