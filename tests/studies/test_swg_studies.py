"""The studies of self-weighted guidance, each run through the command at its smallest scale."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from raydiff.agents.diffusion_policy import DiffusionPolicySpec
from raydiff.cli_study import study as command
from raydiff.errors import RunFailed
from raydiff.evaluation.evaluate_runs import play
from raydiff.metrics import read_metrics
from raydiff.studies import played
from raydiff.studies.api import Condition, plan
from raydiff.studies.played import play_conditions, played_conditions, played_row
from raydiff.studies.swg import FEW_SCALES, GUIDANCE, SCALES, WEIGHT, WEIGHTS
from raydiff.studies.swg_inference import AXES, GUIDED, PLAIN, InferenceOptions
from raydiff.studies.swg_inference import compute as time_all
from raydiff.studies.swg_mixture import TOYS
from raydiff.studies.swg_toy import ToyOptions, laws
from raydiff.studies.swg_toy import compute as sample_all
from raydiff.types import PolicyBlob

QUICK = (
    "data.transitions=1000",
    "learner.updates=20",
    "learner.chunk=10",
    "evaluation.every=20",
    "evaluation.final_episodes=1",
    "learner.swg.steps=2",
)


def untold(done: int, total: int) -> None:
    assert 0 <= done <= total


def run(folder: Path, name: str, *arguments: str) -> dict[str, Any]:
    """What ``results.json`` holds in the end."""
    app = typer.Typer()
    app.command()(command)
    done = CliRunner().invoke(app, [name, "scale=tiny", *arguments, "--out", str(folder)], catch_exceptions=False)
    assert done.exit_code == 0
    assert (folder / name / "figure.png").is_file()
    found: dict[str, Any] = json.loads((folder / name / "results.json").read_text())
    return found


# ------------------------------------------------------------------------------------------------------------ toys
def test_toys(tmp_path: Path) -> None:
    found = run(tmp_path, "swg-toy", "--seeds", "1")
    assert [c["group"] for c in found["conditions"]] == [toy for toy in TOYS for _ in range(2)]
    for condition in found["conditions"]:
        values = condition["runs"][0]
        for measure in ("variation", "variation_perfect", "variation_exact", "outside"):
            assert 0 <= values[measure] <= 1
        assert values["outside"] > 0.3
    learnt, perfect, exact = (
        sum(c["runs"][0][f"distance{kind}"] for c in found["conditions"]) for kind in ("", "_perfect", "_exact")
    )
    assert exact < perfect < learnt, "five steps are few, and an untrained network knows nothing"
    assert len(found["findings"]) == 2 * len(TOYS)


def test_a_toy_is_learnt_and_guidance_moves_it_to_the_exact_law() -> None:
    """With few updates roughly: guided, shares are nearer to those asked for than the data's are."""
    options = ToyOptions(updates=800, batch_size=128, width=64, layers=2, learning_rate=3e-3, largest_beta=4.0,
                         steps=20, betas=(4.0,), scales=(), samples=600)  # fmt: skip
    piece = sample_all(options, "eight-gaussians", 0, untold)
    law = TOYS["eight-gaussians"]()
    apart = float((law.shares(0.0) - law.shares(4.0)).abs().sum() / 2)
    assert piece.lines[0].values["variation"] < apart / 2  # type: ignore[operator]


def test_the_same_seed_gives_the_same_samples() -> None:
    options = ToyOptions(updates=10, batch_size=16, width=8, layers=1, steps=3, betas=(4.0,), scales=(2.0,), samples=20)
    first, again, other = (sample_all(options, "rings", seed, untold) for seed in (0, 0, 1))
    assert first.lines == again.lines
    assert first.arrays.keys() == again.arrays.keys()
    assert all((first.arrays[key] == again.arrays[key]).all() for key in first.arrays)
    assert first.lines != other.lines


def test_laws_of_the_toys() -> None:
    options = ToyOptions(betas=(1.0, 2.0), scales=(0.0, 3.0), scales_beta=7.0)
    assert laws(options) == [(1.0, 1.0), (2.0, 1.0), (7.0, 0.0), (7.0, 3.0)]


# -------------------------------------------------------------------------------------------------- inference time
def test_inference_time(tmp_path: Path) -> None:
    found = run(tmp_path, "swg-inference", "--seeds", "1")
    assert len({c["group"] for c in found["conditions"]}) == 2 + 2 + 3
    assert all(run["single_ms"] > 0 and run["batch_ms"] > 0 for c in found["conditions"] for run in c["runs"])
    lines = (tmp_path / "swg-inference" / "table.md").read_text().splitlines()
    assert "- solver: ddpm" in lines
    assert "- steps: 3" in lines
    assert any(line.startswith("- measured on: ") for line in lines)
    assert any("Each further layer costs" in line for line in lines)


def test_a_gradient_costs_time_and_its_networks_are_the_same() -> None:
    """Guidance adds a backward pass to every forward one."""
    options = InferenceOptions(widths=(256,), steps=5, batch=64, repeats=5)
    plain, guided = time_all(options, "width", 0, untold).lines
    assert (plain.group, guided.group) == (f"width, {PLAIN}", f"width, {GUIDED}")
    assert plain.values["parameters"] == guided.values["parameters"]
    assert guided.values["batch_ms"] > plain.values["batch_ms"]  # type: ignore[operator]


def test_every_part_of_the_published_size_has_its_networks() -> None:
    from raydiff.studies.swg_inference import _networks

    sizes = {part: len(_networks(InferenceOptions(), part)) for part in AXES}
    assert sizes == {"width": 14, "depth": 14, "blocks": 18}


# -------------------------------------------------------------------------------------------------- runs, and plays
@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], dict[str, Any]]:
    """The linex weight of ``swg-weights``: its folder, the arguments, and what was found."""
    folder = tmp_path_factory.mktemp("swg")
    arguments = [f"data.cache={folder}", *QUICK, "--seeds", "1", "--only", "linex*"]
    return folder, arguments, run(folder, "swg-weights", *arguments)


def test_one_training_serves_every_guidance_scale(weights: tuple[Path, list[str], dict[str, Any]]) -> None:
    folder, arguments, found = weights
    assert [c["x"] for c in found["conditions"]] == list(FEW_SCALES)
    assert {c["group"] for c in found["conditions"]} == {"linex"}
    assert all(len(c["runs"]) == 1 for c in found["conditions"])
    folder = folder / "swg-weights"
    assert len(list(folder.glob("*/seed-0/summary.json"))) == 1
    files = sorted(folder.glob("*/seed-0.json"))
    assert len(files) == len(FEW_SCALES) - 1

    stamps = [path.stat().st_mtime_ns for path in files]
    files[0].write_text(files[0].read_text().replace('"policy": "', '"policy": "of another run, '))
    assert run(folder.parent, "swg-weights", *arguments) == found
    assert files[0].stat().st_mtime_ns != stamps[0], "what was played with another policy is played again"
    assert files[1].stat().st_mtime_ns == stamps[1], "and nothing else"


def test_played_as_it_is_a_policy_scores_what_its_run_says(
    weights: tuple[Path, list[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Episodes, seeds and protocol are those of the run's final evaluation; what changes is the guidance scale."""
    folder, arguments, found = weights
    _, jobs = plan(WEIGHT, "tiny", arguments[: 1 + len(QUICK)], 1, folder / "swg-weights")
    job = next(job for job in jobs if job.condition.name == "linex-1")
    scales: list[float] = []

    def listening(policy: PolicyBlob, *rest: Any) -> Any:
        scales.append(policy.spec["guidance_scale"])
        return play(policy, *rest)

    monkeypatch.setattr(played, "play", listening)
    same = [Condition(f"again-{s:g}", "again", "g", {"guidance_scale": s}, played_from="linex-1") for s in (1.0, 7.0)]
    play_conditions(same, [job], lambda *_: None)
    assert scales == [1.0, 7.0]
    returns = json.loads((folder / "swg-weights" / "again-1" / "seed-0.json").read_text())["returns"]
    final = [r for r in read_metrics(job.folder) if r["kind"] == "evaluate" and r["final"]]
    assert returns == final[0]["returns"]
    assert played_row(same[0], [job]).runs[0]["score"] == found["conditions"][0]["runs"][0]["score"]


def test_a_policy_without_such_a_setting_is_refused(weights: tuple[Path, list[str], dict[str, Any]]) -> None:
    folder, arguments, _ = weights
    _, jobs = plan(WEIGHT, "tiny", arguments[: 1 + len(QUICK)], 2, folder / "swg-weights")
    wrong = Condition("wrong", "wrong", "wrong", {"omega": 1.0}, played_from="linex-1")
    told: list[str] = []
    with pytest.raises(RunFailed, match=r"wrong/seed-0: the policy of .*linex-1/seed-0 has no setting omega"):
        play_conditions([wrong], jobs, lambda what, done, total, more: told.append(more))
    assert told == ["wrong/seed-0"], "only of the run that has ended"
    assert not played_row(wrong, jobs).runs


def test_guidance_scales(tmp_path: Path, weights: tuple[Path, list[str], dict[str, Any]]) -> None:
    cache = f"data.cache={weights[0]}"
    found = run(tmp_path, "swg-guidance", cache, *QUICK, "--seeds", "1", "--only", "hard*")
    assert [c["x"] for c in found["conditions"]] == list(SCALES)
    assert all(len(c["runs"]) == 1 for c in found["conditions"])


def test_played_conditions_change_the_policy_and_nothing_of_a_run(tmp_path: Path) -> None:
    for study, sources in ((WEIGHT, len(WEIGHTS)), (GUIDANCE, 2)):
        base, jobs = plan(study, "small", [], 2, tmp_path)
        assert len(jobs) == 2 * sources
        found = played_conditions(study, base, jobs)
        assert len(found) + sources == len(study.conditions(base))
        assert {key for condition in found for key in condition.overrides} <= set(DiffusionPolicySpec.model_fields)
        assert {condition.played_from for condition in found} == {job.condition.name for job in jobs}
        assert played_conditions(study, base, jobs[:1]) == [c for c in found if c.played_from == jobs[0].condition.name]


def test_the_weights_differ_in_nothing_else(tmp_path: Path) -> None:
    _, jobs = plan(WEIGHT, "small", [], 1, tmp_path)
    weights = [job.config.learner.swg.weight for job in jobs]
    assert weights == ["smooth_expectile", "expectile", "exponential", "linex"]
    same = {"weight": "expectile"}
    learners = [job.config.learner for job in jobs]
    rest = {x.model_copy(update={"swg": x.swg.model_copy(update=same)}).model_dump_json() for x in learners}
    assert len(rest) == 1
    assert all(job.config.generator.count == 0 for job in jobs)
