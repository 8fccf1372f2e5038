"""AEPO's studies and Diffusion-QL's on runs: what their conditions change, what is read from them, and that they run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from raydiff.studies.aepo import BETA, CRITIC, EXPECTILE, RESCALE
from raydiff.studies.api import Job, Study, plan
from raydiff.studies.collect import gather, publish
from raydiff.studies.diffusion_ql import EDP
from raydiff.studies.results import Results, Row
from raydiff.studies.runner import execute

ALL = (RESCALE, BETA, EXPECTILE, CRITIC, EDP)
SHORT = ["data.transitions=300", "learner.updates=20", "learner.chunk=10", "evaluation.final_episodes=1"]


def planned(study: Study, scale: str = "small") -> dict[str, Job]:
    return {job.condition.name: job for job in plan(study, scale, [], 1, Path("out"))[1]}


def test_all_are_made_on_real_data_alone_and_with_equal_budgets() -> None:
    for study in ALL:
        for scale in study.scales:
            jobs = planned(study, scale).values()
            assert all(job.config.generator.count == 0 for job in jobs)
            assert len({job.config.learner.updates for job in jobs}) == 1


def test_rescaling_is_tried_at_every_guidance_degree() -> None:
    found = {name: job.config.learner.aepo for name, job in planned(RESCALE).items()}
    assert found["none"].guidance_scale == 0
    degrees = {rescale: {o.guidance_scale for o in found.values() if o.rescale is rescale} for rescale in (True, False)}
    assert degrees[True] == {0.5, 1.0, 2.0, 5.0}
    assert degrees[False] == degrees[True] | {0.0}
    rest = [o.model_copy(update={"guidance_scale": 1.0, "rescale": False}) for o in found.values()]
    assert all(options == rest[0] for options in rest), "nothing else differs"


@pytest.mark.parametrize(
    ("study", "read", "values"),
    [
        (BETA, lambda options: options.beta, [1, 2, 3, 4, 5]),
        (EXPECTILE, lambda options: options.expectile, [0.5, 0.6, 0.7, 0.8, 0.9]),
        (CRITIC, lambda options: options.critic, ["iql", "cql", "isql"]),
    ],
)
def test_every_value_of_a_parameter_is_tried(
    study: Study, read: Callable[[object], object], values: list[object]
) -> None:
    assert [read(job.config.learner.aepo) for job in planned(study, "paper").values()] == values


def test_the_chain_and_the_estimate_are_compared_at_equal_numbers_of_sampler_steps() -> None:
    found = {name: job.config.learner.diffusion_ql for name, job in planned(EDP).items()}
    assert {name: (o.variant, o.levels, o.solver_steps) for name, o in found.items()} == {
        "full-5": ("full", 5, 15),
        "full-15": ("full", 15, 15),
        "edp-15": ("efficient", 1000, 15),
        "edp-5": ("efficient", 1000, 5),
    }


def results(study: Study, scores: dict[str, list[float]], **more: list[float]) -> Results:
    """Rows of a study with these scores by seed."""
    rows = []
    for name, job in planned(study).items():
        values = scores.get(name, [])
        runs = {seed: {"score": value, **{k: v[seed] for k, v in more.items()}} for seed, value in enumerate(values)}
        rows.append(Row(name, job.condition.label, job.condition.group, {}, job.condition.x, runs))
    return Results(study.name, study.title, rows)


def test_findings_on_rescaling() -> None:
    scores = {
        "none": [10.0, 10.0],
        "plain-0.5": [20.0, 20.0],
        "plain-1": [30.0, 30.0],
        "rescaled-0.5": [15.0, 15.0],
        "rescaled-1": [40.0, 40.0],
    }
    lines = RESCALE.findings(results(RESCALE, scores))
    assert lines[0] == "not rescaled: final score rises from 20.0 at 0.5 to 30.0 at 1; best at 1."
    assert lines[1] == "rescaled: final score rises from 15.0 at 0.5 to 40.0 at 1; best at 1."
    assert "against no guidance, omega = 0" in lines[2]
    assert ": 4 wins (" in lines[2]
    assert lines[3].endswith("0 wins, 0 ties, 1 loss (rescaled, omega = 0.5 at 15.0 [15.0, 15.0]).")
    assert "1 win (rescaled, omega = 1 at 40.0" in lines[4]
    assert len(lines) == 5


def test_findings_on_parameters_critics_and_the_estimate() -> None:
    (line,) = BETA.findings(results(BETA, {"beta-10": [1.0], "beta-20": [3.0], "beta-30": [2.0]}))
    assert line == "AEPO: final score is not monotone from 1.0 at 10 to 2.0 at 30; best at 20."
    (line,) = CRITIC.findings(results(CRITIC, {"iql": [10.0, 10.0], "cql": [5.0, 5.0]}))
    assert line.endswith("0 wins, 0 ties, 1 loss (critics, conservative penalty at 5.0 [5.0, 5.0]).")
    score, time = EDP.findings(results(EDP, {"full-5": [10.0, 10.0], "edp-15": [10.0, 10.0]}, update_ms=[4.0, 4.0]))
    assert score.startswith("Final score against full chain, 5 steps at 10.0")
    assert "1 tie" in score
    assert time.startswith("Ms per update against full chain, 5 steps at 4.0")
    assert all(study.findings(results(study, {})) == [] for study in ALL)


def test_they_run(tmp_path: Path) -> None:
    """The heaviest condition of each; what AEPO's other studies change are plain numbers."""
    studies, heaviest = (RESCALE, CRITIC, EDP), {"rescaled-5", "isql", "edp-5"}
    plans = {s.name: plan(s, "tiny", [*SHORT, f"data.cache={tmp_path}"], 1, tmp_path / s.name) for s in studies}
    jobs = {name: [job for job in own if job.condition.name in heaviest] for name, (_, own) in plans.items()}
    work = [job for own in jobs.values() for job in own]
    assert len(work) == len(studies)
    assert execute(work, "local", 2, "resume", lambda *_: None, print) == {}
    for study in studies:
        found = gather(study, plans[study.name][0], jobs[study.name], {})
        (row,) = found.rows
        assert isinstance(row.runs[0]["score"], float)
        assert row.values("update_ms")[0] > 0
        files = publish(study, found, tmp_path / study.name)
        assert [path.name for path in files] == ["table.md", "results.json", "figure.png"]
        assert f"| {row.label} | 1 |" in files[0].read_text()
