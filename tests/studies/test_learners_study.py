"""The study of all learners: its conditions, its table and figure on known values, and two learners that really run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import typer
from matplotlib.colors import to_hex
from typer.testing import CliRunner

from raydiff.cli_study import study as command
from raydiff.config_learner import LearnerConfig
from raydiff.data.collect import collect
from raydiff.errors import UserError
from raydiff.evaluation.statistics import iqm_over_runs, probability_of_improvement
from raydiff.studies.api import plan
from raydiff.studies.learners import LEARNERS, STUDY, curve, draw, findings, table
from raydiff.studies.registry import STUDIES
from raydiff.studies.results import Results, Row
from raydiff.studies.table import markdown

MAZE, HOPPER = "maze2d-umaze-v1", "hopper-medium-replay"
AT = [100.0, 200.0]


def row(learner: str, group: str, scores: Sequence[float], normalised: float = 1.0) -> Row:
    """Seeds whose curve rises from zero to their score."""
    runs = {
        seed: {"score": score, "curve": [0.0, score], "scored_at": AT, "behaviour": 10.0, "normalised": normalised,
               "update_ms": 2.0, "seconds": 30.0}
        for seed, score in enumerate(scores)
    }  # fmt: skip
    return Row(f"{group}-{learner}", LEARNERS[learner], group, {}, None, runs)


LOW, HIGH = [10.0, 11.0, 12.0, 13.0, 40.0], [50.0, 51.0, 52.0, 53.0, -40.0]


def results(normalised: float = 1.0) -> Results:
    rows = [
        row("td3_bc", MAZE, LOW),
        row("iql", MAZE, HIGH),
        row("td3_bc", HOPPER, LOW, normalised),
        row("iql", HOPPER, [20.0, 21.0, 22.0, 23.0, 24.0], normalised),
    ]
    return Results("learners", "t", rows)


def cells(lines: Sequence[str], learner: str, place: int = 0) -> list[str]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith(f"| {learner} |")][
        place
    ]


def test_every_learner_is_a_condition_on_the_maze_and_on_each_file_with_as_many_updates_of_critics(
    tmp_path: Path,
) -> None:
    assert list(LEARNERS) != sorted(LEARNERS)
    assert set(LEARNERS) == set(get_args(LearnerConfig.model_fields["algorithm"].annotation))
    _, jobs = plan(STUDY, "small", ["learner.updates=700"], 2, tmp_path, [f"/some/{HOPPER}.hdf5", "hopper-medium-v2"])
    assert [job.name for job in jobs[:9]] == [
        *(f"{MAZE}-{learner}/seed-0" for learner in LEARNERS),
        f"{HOPPER}-td3_bc/seed-0",
    ]
    assert len(jobs) == 3 * len(LEARNERS) * 2
    assert {job.condition.group for job in jobs} == {MAZE, HOPPER, "hopper-medium-v2"}
    updates = {job.config.learner.algorithm: job.config.learner.updates for job in jobs}
    assert updates == dict.fromkeys(LEARNERS, 700) | {"aepo": 1750, "qgpo": 1120}, "critics have as many in all"
    assert all(job.config.evaluation.every == job.config.learner.updates // 10 for job in jobs)
    assert {job.config.generator.count for job in jobs} == {0}
    for job in jobs:
        assert job.name.startswith(f"{job.condition.group}-{job.config.learner.algorithm}/")
        given = job.condition.group != MAZE
        assert job.config.data.dataset == (None if not given else f"/some/{HOPPER}.hdf5" if HOPPER in job.name else
                                           "hopper-medium-v2")  # fmt: skip
        assert job.config.data.environment == (None if given else MAZE)
        assert job.config.learner.cql.lagrange == (job.config.learner.algorithm == "cql" and not given)


def test_datasets_of_one_name_are_refused_and_other_studies_have_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Two of the datasets of learners are called hopper-medium-replay"):
        plan(STUDY, "tiny", [], 1, tmp_path, [f"/a/{HOPPER}.hdf5", f"/b/{HOPPER}.hdf5"])
    with pytest.raises(UserError, match=r"pgd-figure4 is made on one dataset"):
        plan(STUDIES["pgd-figure4"], "tiny", [], 1, tmp_path, ["a.hdf5", "b.hdf5"])
    base, _ = plan(STUDIES["pgd-figure4"], "tiny", [], 1, tmp_path, ["a.hdf5"])
    assert (base.data.dataset, base.data.environment) == ("a.hdf5", None)


def test_the_table_has_interquartile_means_and_the_probability_of_improvement() -> None:
    lines = table(results())
    iqm = iqm_over_runs([HIGH], 0)
    above = probability_of_improvement([HIGH], [LOW], 0)
    assert (iqm.value, above.value) == (51.0, 0.8)
    found = cells(lines, "IQL")
    assert found[:2] == ["IQL", "5"]
    assert found[2] == f"51.0 [{iqm.low:.1f}, {iqm.high:.1f}]"
    assert found[3] == f"0.80 [{above.low:.2f}, {above.high:.2f}]"
    assert found[4].startswith("33.2 [")
    assert found[5:] == ["2.0", "30"]
    assert cells(lines, "TD3+BC")[3] == "", "it is not compared with itself"
    assert f"| **{MAZE}** (behaviour 10.0) |" in "\n".join(lines)


def test_over_all_datasets_runs_are_pooled_and_compared_task_by_task() -> None:
    lines = table(results())
    pooled = iqm_over_runs([HIGH, [20.0, 21.0, 22.0, 23.0, 24.0]], 0)
    above = probability_of_improvement([HIGH, [20.0, 21.0, 22.0, 23.0, 24.0]], [LOW, LOW], 0)
    found = cells(lines, "IQL", 2)
    assert found[1:4] == [
        "10",
        f"{pooled.value:.1f} [{pooled.low:.1f}, {pooled.high:.1f}]",
        f"0.80 [{above.low:.2f}, {above.high:.2f}]",
    ]
    assert "all datasets" not in "\n".join(table(results(normalised=0.0))), "returns have no common scale"


def test_a_learner_that_was_not_run_has_a_line_and_no_figures() -> None:
    found = results()
    missing = Results("learners", "t", [*found.rows, Row("x", "QGPO", MAZE, {}, None, {}, {0: "it broke"})])
    assert cells(table(missing), "QGPO") == ["QGPO", "not run", "", "", "", "", ""]
    assert "- QGPO, seed 0: it broke" in markdown(missing, STUDY, [])


def test_findings_name_the_ends_and_who_is_told_apart() -> None:
    lines = findings(results())
    assert f"{MAZE}: highest IQL at {cells(table(results()), 'IQL')[2]}, lowest TD3+BC at 12.0 [10.7, 31.0]." in lines
    rows = [
        row("td3_bc", MAZE, LOW),
        row("iql", MAZE, [90.0, 91.0, 92.0, 93.0]),
        row("cql", MAZE, [1.0, 2.0, 3.0, 4.0]),
    ]
    clear = Results("s", "t", rows)
    lines = findings(clear)
    assert any(line.startswith(f"{MAZE}: IQL ends above TD3+BC") for line in lines)
    assert any(line.startswith(f"{MAZE}: CQL ends below TD3+BC") for line in lines)
    assert f"{MAZE}: not above the data's own score of 10.0: CQL at 2.5 [1.0, 4.0]." in lines
    few = Results("s", "t", [row("td3_bc", MAZE, LOW), row("iql", MAZE, [90.0, 91.0])])
    assert not any("ends above" in line for line in findings(few)), "two seeds prove nothing"


def test_curves_are_interquartile_means_over_seeds_with_their_intervals() -> None:
    points = curve(row("iql", MAZE, HIGH))
    assert [update for update, _ in points] == AT
    assert [found.value for _, found in points] == [0.0, 51.0]
    assert points[1][1] == iqm_over_runs([HIGH], 0)
    figure = draw(results())
    assert figure is not None
    panels = [axes.get_title(loc="left") for axes in figure.axes]
    assert panels == [MAZE, "last policies", HOPPER, "last policies"]
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert list(lines["IQL"].get_xdata()) == AT
    assert list(lines["IQL"].get_ydata()) == [0.0, 51.0]
    assert figure.axes[0].get_ylabel() == "normalised score"
    assert len(figure.axes[0].collections) == 2, "an interval for each curve"
    assert draw(Results("s", "t", [])) is None


def test_learners_are_told_apart_by_colour_and_shape() -> None:
    rows = [row(learner, MAZE, [1.0, 2.0]) for learner in LEARNERS]
    figure = draw(Results("s", "t", rows))
    assert figure is not None
    lines = figure.axes[0].lines[: len(LEARNERS)]
    assert (
        len({to_hex(line.get_color()) for line in lines}) == len({line.get_marker() for line in lines}) == len(LEARNERS)
    )


def test_two_learners_really_run_on_two_datasets(tmp_path: Path) -> None:
    path = collect("hopper", "random", 1000, 0, tmp_path / f"{HOPPER}.hdf5")
    app = typer.Typer()
    app.command()(command)
    arguments = [
        "learners",
        "scale=tiny",
        f"data.cache={tmp_path / 'cache'}",
        "data.transitions=1000",
        "learner.updates=40",
    ]
    arguments += ["learner.chunk=20", "--data", str(path), "--seeds", "1", "--jobs", "2", "--only", "*-td3_bc,*-iql"]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0
    folder = tmp_path / "learners"
    assert (folder / "figure.png").stat().st_size > 10_000
    data = json.loads((folder / "results.json").read_text())
    names = [f"{task}-{learner}" for task in (MAZE, HOPPER) for learner in ("td3_bc", "iql")]
    assert [condition["name"] for condition in data["conditions"]] == names
    assert data["facts"]["dataset"] == f"{MAZE}, waypoint, 1,000 transitions collected here; {path}"
    for condition in data["conditions"]:
        for run in condition["runs"]:
            assert run["scored_at"] == sorted(set(run["scored_at"]))
            assert run["scored_at"][-1] == 40.0
            assert run["curve"][-1] == run["score"]
            assert run["update_ms"] > 0
            assert np.isfinite(run["curve"]).all()
    lines = (folder / "table.md").read_text()
    assert "P(above TD3+BC)" in lines
    assert "**all datasets**" in lines
