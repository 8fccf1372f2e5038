from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes

from raydiff.comparison import figures, findings
from raydiff.comparison.conditions import Comparison, compare
from raydiff.comparison.measures import (
    band,
    deviation_curve,
    error_curve,
    final_scores,
    lag_curve,
    mean_rates,
    score_curve,
)
from raydiff.comparison.runs import load_runs
from raydiff.comparison.scores import aggregates, on_every_task, pairs, task_table
from raydiff.comparison.timelines import busy, timelines
from raydiff.gantt import Row

MakeRun = Callable[..., Path]


def comparison(*folders: Path) -> Comparison:
    return compare(load_runs(folders))


def two_seeds(make_run: MakeRun) -> Comparison:
    """Two seeds of two arms; guided peaks before the end."""
    return comparison(
        make_run("s0", {"guided": [1.0, 50.0, 10.0], "real_only": [1.0, 2.0, 3.0]}),
        make_run("s1", {"guided": [3.0, 70.0, 20.0], "real_only": [2.0, 3.0, 5.0]}, seed=1),
    )


def line(axes: Axes, colour: str, width: float) -> list[np.ndarray]:
    lines = axes.get_lines()
    return [np.asarray(x.get_xydata()) for x in lines if x.get_color() == colour and x.get_linewidth() == width]


def test_final_scores_are_those_of_the_last_policies(make_run: MakeRun) -> None:
    found = two_seeds(make_run)
    guided = found.conditions[0]
    (task,) = found.tasks
    score = final_scores(guided, task, "normalized")
    assert score is not None
    assert (score.mean, score.low, score.high, score.seeds, score.unit) == (
        15.0,
        10.0,
        20.0,
        {0: 10.0, 1: 20.0},
        "seeds",
    )
    rows = {row[0]: row for row in task_table(found, task).rows}
    assert rows["guided"][1:5] == ("10.0, 20.0", "15.0", "[10.0, 20.0]", "2 seeds")
    assert rows["behaviour (the data)"][2:4] == ("1.0", "[0.8, 1.2]")
    assert "70" not in str(rows["guided"])
    assert "down from 60.0 at 200 updates" in findings.curves_show(found, "d4rl")
    assert "highest mean 15.0 [10.0, 20.0] for guided, then 4.0 [3.0, 5.0] for real only" in findings.finals_show(
        found, "d4rl"
    )


def test_one_seed_has_the_interval_of_its_episodes(make_run: MakeRun) -> None:
    found = comparison(make_run("a", {"guided": [1.0, 10.0]}), make_run("b", {"real_only": [1.0, 4.0]}))
    (task,) = found.tasks
    score = final_scores(found.conditions[0], task, "normalized")
    assert score is not None
    assert (score.mean, score.low, score.high, score.unit) == (10.0, 9.5, 10.5, "episodes")
    curve = band(found.conditions[0], task, score_curve, "episodes")
    assert curve is not None
    np.testing.assert_allclose(curve.curve.low, [0.5, 9.5])
    assert curve.unit == "episodes"
    (pair,) = pairs(found, "d4rl")
    assert (pair.probability.value, pair.probability.low, pair.chance, pair.decided) == (1.0, None, 1.0, False)


def test_bands_end_where_the_first_seed_ends(make_run: MakeRun) -> None:
    found = comparison(
        make_run("long", {"guided": [0.0, 10.0, 20.0, 30.0]}),
        make_run("short", {"guided": [2.0, 20.0]}, seed=1, finished=False),
    )
    (task,) = found.tasks
    guided = found.conditions[0]
    curve = band(guided, task, score_curve, "episodes")
    assert curve is not None
    np.testing.assert_allclose(curve.curve.updates, [100, 200])
    np.testing.assert_allclose(curve.curve.mean, [1.0, 15.0])
    np.testing.assert_allclose(curve.curve.low, [0.0, 10.0])
    np.testing.assert_allclose(curve.curve.high, [2.0, 20.0])
    np.testing.assert_allclose(curve.seeds[0].updates, [100, 200, 300, 400])
    rows = task_table(found, task).rows
    assert rows[-1][1] == "30.0"  # only the long one has a last policy


def test_quality_is_averaged_over_parts_of_the_run(make_run: MakeRun) -> None:
    found = two_seeds(make_run)
    (task,) = found.tasks
    guided = found.conditions[0]
    for measure, want in ((error_curve, [0.1, 0.2, 0.3]), (deviation_curve, [0.04] * 3), (lag_curve, [10, 20, 30])):
        curve = band(guided, task, measure, "blocks")
        assert curve is not None
        np.testing.assert_allclose(curve.curve.updates, [112.5, 212.5, 287.5])  # middles of twelfths of 300
        np.testing.assert_allclose(curve.curve.mean, want)
        np.testing.assert_allclose(curve.curve.low, want)  # the seeds do not differ
    assert band(found.conditions[1], task, error_curve, "blocks") is None
    assert "guided 0.200" in findings.quality_shows(found, task)
    figure = figures.data_quality(found, task)
    assert figure is not None
    np.testing.assert_allclose(line(figure.axes[0], figures.looks(found)["guided"][0], 1.9)[0][:, 1], [0.1, 0.2, 0.3])


def test_rates_are_counted_from_the_first_chunk_to_the_last(make_run: MakeRun) -> None:
    found = two_seeds(make_run)
    (task,) = found.tasks
    rates = mean_rates(found.conditions[0], task)
    # Three chunks of 100 updates, from 0 to 5.8 s; nine blocks of 50; 0.2 s of waiting before two of the chunks.
    assert rates["updates"].mean == pytest.approx(300 / 5.8)
    assert rates["trajectories"].mean == pytest.approx(450 / 5.8)
    assert rates["waiting"].mean == pytest.approx(0.4 / 5.8)
    assert rates["idle"].mean == pytest.approx(1 - 9 * 0.4 / (2 * 5.8))
    real = mean_rates(found.conditions[1], task)
    assert "trajectories" not in real
    assert real["updates"].mean == pytest.approx(300 / 5.8)
    figure = figures.throughput(found, task)
    assert figure is not None
    assert [text.get_text() for text in figure.axes[0].texts] == ["52", "52"]


def test_learning_curves_draw_means_seeds_and_intervals(make_run: MakeRun) -> None:
    found = two_seeds(make_run)
    figure = figures.learning_curves(found, "d4rl")
    assert figure is not None
    (axes,) = figure.axes
    colour = figures.looks(found)["guided"][0]
    np.testing.assert_allclose(line(axes, colour, 1.9)[0], [(100, 2.0), (200, 60.0), (300, 15.0)])
    np.testing.assert_allclose([seed[:, 1] for seed in line(axes, colour, 0.7)], [[1, 50, 10], [3, 70, 20]])
    corners = np.asarray(axes.collections[0].get_paths()[0].vertices)
    assert {(200.0, 50.0), (200.0, 70.0)} <= {(float(x), float(y)) for x, y in corners}


def test_pairs_compare_seed_by_seed(make_run: MakeRun) -> None:
    finals = {"guided": [5.0, 6.0, 9.0, 7.0, 8.0, 9.5], "real_only": [1.0, 2.0, 3.0, 2.5, 8.5, 4.0]}
    runs = [make_run(f"s{s}", {arm: [values[s]] for arm, values in finals.items()}, seed=s) for s in range(6)]
    found = comparison(*runs)
    (pair,) = pairs(found, "d4rl")
    assert (pair.won, pair.shared) == (5, 6)
    assert pair.probability.value == pytest.approx(
        np.mean([x > y for x in finals["guided"] for y in finals["real_only"]])
    )
    assert pair.difference is not None
    assert pair.difference.value == pytest.approx(np.mean(np.subtract(*finals.values())))
    # Of the 64 signings, those at least as far from zero: all alike, and those that turn the difference of -0.5.
    assert pair.chance == pytest.approx(4 / 64)
    assert not pair.decided
    assert "0 of 1 pair are told apart" in findings.pairs_show([pair])
    clear = comparison(*(make_run(f"c{s}", {"guided": [9.0 + s], "real_only": [1.0 * s]}, seed=s) for s in range(6)))
    (apart,) = pairs(clear, "d4rl")
    assert apart.decided
    assert "1 of 1 pair is told apart" in findings.pairs_show([apart])
    assert "guided above real only" in findings.pairs_show([apart])


def test_too_few_seeds_tell_no_pair_apart(make_run: MakeRun) -> None:
    found = pairs(two_seeds(make_run), "d4rl")
    assert found[0].probability.value == 1.0  # every guided run is above every other
    assert findings.pairs_show(found).startswith("No pair can be told apart: with 2 shared seeds")
    assert "p = 0.5" in findings.pairs_show(found)


def test_aggregates_take_every_task_alike(make_run: MakeRun) -> None:
    scores = {"HalfCheetah-v4": [[0.0], [4.0]], "Hopper-v4": [[10.0], [18.0]]}
    runs = [
        make_run(f"{name}{seed}", {"guided": score}, environment=name, seed=seed)
        for name, per_seed in scores.items()
        for seed, score in enumerate(per_seed)
    ]
    found = comparison(*runs, make_run("other", {"real_only": [5.0]}))
    assert [condition.label for condition in on_every_task(found, found.tasks)] == ["guided"]
    mean, middle = aggregates(found.conditions[0], found.tasks)
    assert (mean.value, mean.low, mean.high, mean.runs) == (8.0, 5.0, 11.0, 4)
    assert middle.value == 7.0  # of 0, 4, 10, 18
    assert on_every_task(found, found.tasks[:1]) == []


def test_timelines_fill_as_far_as_workers_are_busy(make_run: MakeRun) -> None:
    edges = np.array([0.0, 1.0, 2.0, 4.0])
    rows = [Row("a", "g/0", {"new block": [(0.0, 1.5)]}), Row("a", "g/1", {"new block": [(0.5, 1.0), (3.0, 9.0)]})]
    np.testing.assert_allclose(busy(rows, edges), [(1.0 + 0.5) / 2, 0.5 / 2, 0.5 / 2])
    found = two_seeds(make_run)
    figure = timelines(found)
    assert figure is not None
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["s0", "s1"]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["learner", "generators", "evaluators"]
    assert "between 106 s" not in findings.timelines_show(found)
    assert findings.timelines_show(found).startswith("The runs took between") or "took" in findings.timelines_show(
        found
    )
