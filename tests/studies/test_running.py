"""Studies that really run: end to end, again, with a run that fails, and interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from raydiff.cli_study import study as command
from raydiff.config import Config
from raydiff.errors import UserError
from raydiff.runtime.conductor import Conductor
from raydiff.studies import registry
from raydiff.studies.api import Condition, Scale, Study, plan
from raydiff.studies.collect import gather, publish
from raydiff.studies.registry import STUDIES, find_study
from raydiff.studies.runner import GRACE_S, check_jobs, execute, models_key

SMALL = {
    "scale": "tiny",
    "data.transitions": 1000,
    "denoiser.steps": 10,
    "reward.steps": 10,
    "generator.count": 1,
    "generator.batch": 64,
    "replay.generation": 64,
    "replay.warmup": 64,
    "refiner.count": 0,
    "learner.updates": 20,
    "learner.chunk": 10,
    "evaluation.every": 20,
    "evaluation.final_episodes": 1,
}


def two(_: Config) -> list[Condition]:
    return [
        Condition("real", "real", "real", {"generator.count": 0}),
        Condition("unguided", "unguided", "synthetic", {"guidance.kind": "none"}),
    ]


def broken(_: Config) -> list[Condition]:
    """The first has no data and fails before its run, the second in it."""
    return [
        Condition("missing", "missing data", "broken", {"data.dataset": "/nowhere/data.hdf5", "generator.count": 0}),
        Condition("no-gpu", "no GPU", "broken", {"generator.count": 0, "learner.device": "cuda:9"}),
    ]


def tiny(conditions: object, **settings: object) -> Study:
    scales = {"tiny": Scale("pendulum.yaml", {**SMALL, **settings})}
    return Study("mine", "Mine.", conditions, lambda results: [f"{len(results.rows)} rows"], scales)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"data.cache={tmp_path_factory.mktemp('cache')}"


def test_a_study_runs_and_is_not_run_again(tmp_path: Path, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = tiny(two)
    monkeypatch.setitem(registry.STUDIES, "mine", chosen)
    arguments = ["mine", "scale=tiny", cache, "--seeds", "2", "--jobs", "2", "--out", str(tmp_path)]
    with pytest.raises(UserError, match=r"holds no run of mine"):
        CliRunner().invoke(cli(), [*arguments, "--read"], catch_exceptions=False)
    done = CliRunner().invoke(cli(), arguments, catch_exceptions=False)
    folder = tmp_path / "mine"
    assert done.exit_code == 0
    assert str(folder / "table.md") in done.output
    assert {path.name for path in folder.iterdir()} == {"figure.png", "real", "results.json", "table.md", "unguided"}
    # One model for both seeds, trained once and before its runs:
    assert len(list((Path(cache.partition("=")[2]) / "denoisers").iterdir())) == 1

    data = json.loads((folder / "results.json").read_text())
    assert [condition["name"] for condition in data["conditions"]] == ["real", "unguided"]
    for condition in data["conditions"]:
        assert [run["seed"] for run in condition["runs"]] == [0, 1]
        for run in condition["runs"]:
            summary = json.loads((folder / condition["name"] / f"seed-{run['seed']}" / "summary.json").read_text())
            assert summary["updates"] == 20
            assert summary["main"] == ("real_only" if condition["name"] == "real" else "unguided")
            assert set(summary["arms"]) == {summary["main"]}
            assert run["score"] == summary["scores"][summary["main"]]["raw"]["mean"]  # Pendulum has no reference
    assert data["findings"] == ["2 rows"]
    assert data["learner"] == {
        "learner.algorithm": "td3_bc",
        "learner.learning_rate": 1e-3,
        "learner.td3_bc.alpha": 2.5,
    }

    runs = {path: path.stat().st_mtime_ns for path in folder.glob("*/**/*") if path.is_file()}
    assert len(runs) > 20
    assert CliRunner().invoke(cli(), arguments, catch_exceptions=False).exit_code == 0
    read = [*arguments, "--read", "--only", "re*", "learner.batch_size=64"]
    assert CliRunner().invoke(cli(), read, catch_exceptions=False).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/**/*") if path.is_file()} == runs
    assert len(json.loads((folder / "results.json").read_text())["conditions"]) == 1

    with pytest.raises(UserError, match=r"finished run with other settings.*batch_size is 256 there and 64 here"):
        CliRunner().invoke(cli(), [*arguments, "learner.batch_size=64"], catch_exceptions=False)
    _, changed = plan(chosen, "tiny", [cache, "learner.batch_size=64"], 2, folder)
    check_jobs(changed, "overwrite")


def test_a_run_that_fails_is_reported_and_stops_no_other(tmp_path: Path, cache: str) -> None:
    chosen = tiny(broken)
    base, jobs = plan(chosen, "tiny", [cache], 1, tmp_path)
    said: list[str] = []
    failures = execute(jobs, "local", 2, "resume", lambda *_: None, said.append)
    assert set(failures) == {"missing/seed-0", "no-gpu/seed-0"}
    assert "/nowhere/data.hdf5" in failures["missing/seed-0"]
    assert "exit code 2" in failures["missing/seed-0"]
    assert "cuda:9" in failures["no-gpu/seed-0"]
    assert sorted(line.partition(" failed: ")[0] for line in said) == ["missing/seed-0", "no-gpu/seed-0"]
    table = publish(chosen, gather(chosen, base, jobs, failures), tmp_path)[0].read_text()
    assert "- missing data, seed 0: " in table
    assert "| no GPU | not run |" in table


INTERRUPTED = """
import sys
from importlib import util
from pathlib import Path
from raydiff.cli import guarded
spec = util.spec_from_file_location("test_running", {file!r})
module = util.module_from_spec(spec)
spec.loader.exec_module(module)
_, jobs = module.plan(module.tiny(module.two, **{{"learner.updates": 10_000_000}}), "tiny", [{cache!r}], 1, Path({out!r}))
def go():
    module.execute(jobs, "local", 1, "resume", lambda what, done, total, more: print(more, flush=True), print)
sys.exit(guarded(go))
"""


def test_a_study_that_is_stopped_leaves_no_run_behind(tmp_path: Path, cache: str) -> None:
    code = INTERRUPTED.format(file=__file__, cache=cache, out=str(tmp_path / "studies"))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    metrics = tmp_path / "studies" / "real" / "seed-0" / "metrics.jsonl"
    end = time.monotonic() + 60
    while not (metrics.is_file() and metrics.stat().st_size):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.1)
    children = _children(process.pid)
    assert len(children) == 1
    process.send_signal(signal.SIGTERM)  # handled as Ctrl-C is
    process.communicate(timeout=GRACE_S + 30)
    assert process.returncode == 130
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert not (metrics.parent / "summary.json").exists()


def _children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == parent and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def test_every_study_is_made_of_settings_that_exist(tmp_path: Path) -> None:
    for chosen in STUDIES.values():
        assert set(chosen.scales) == {"tiny", "small", "paper"}
        for scale in chosen.scales:
            _, jobs = plan(chosen, scale, [], 1, tmp_path)
            names = [job.name for job in jobs]
            assert len(names) == len(set(names))
            configs = {job.config.model_copy(update={"output": ""}).model_dump_json() for job in jobs}
            assert len(configs) == len(jobs), f"{chosen.name} has two conditions that are the same"
            assert all(not job.config.arms for job in jobs)
            for job in jobs:
                Conductor(job.config, "check")  # refuses limits under which a run would stall


def test_where_it_pays_runs_the_essential_conditions_of_all_seeds_first(tmp_path: Path) -> None:
    _, jobs = plan(STUDIES["where-it-pays"], "small", [], 2, tmp_path)
    first = [job for job in jobs if job.condition.rank == 0]
    assert jobs[: len(first)] == first
    assert [job.seed for job in first] == sorted(job.seed for job in first)
    assert {job.condition.group for job in first} == {"real data alone", "unguided", "guided"}
    updates = {job.config.learner.updates for job in jobs}
    assert len(updates) == 1, "all conditions have the same budget"


def test_collected_data_can_be_made_smaller_and_files_cannot(tmp_path: Path) -> None:
    _, jobs = plan(STUDIES["where-it-pays"], "small", [], 1, tmp_path)
    assert {job.config.data.transitions for job in jobs} == {100_000, 20_000}
    _, jobs = plan(STUDIES["where-it-pays"], "small", ["data.dataset=x.hdf5"], 1, tmp_path)
    assert not any(job.condition.name.startswith("small") for job in jobs)


def test_models_are_shared_by_seeds_and_guidance_but_not_by_denoisers(tmp_path: Path) -> None:
    _, jobs = plan(STUDIES["where-it-pays"], "tiny", [], 2, tmp_path)
    keys = {job.name: models_key(job.config) for job in jobs}
    assert keys["guided/seed-0"] == keys["guided/seed-1"] == keys["unguided/seed-0"] == keys["paper/seed-0"]
    assert len({keys[f"{n}/seed-0"] for n in ("guided", "length-5", "few-steps", "real-alpha-10-lr-0.001")}) == 4


def test_an_unknown_study_or_scale_names_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no study 'where-it-pay'. Did you mean where-it-pays"):
        find_study("where-it-pay")
    with pytest.raises(UserError, match=r"scale=huge.*On offer: tiny, small, paper"):
        plan(STUDIES["where-it-pays"], "huge", [], 1, tmp_path)
    with pytest.raises(UserError, match=r"learner\.batchsize"):
        plan(STUDIES["where-it-pays"], "tiny", ["learner.batchsize=1"], 1, tmp_path)


def cli() -> typer.Typer:
    app = typer.Typer()
    app.command()(command)
    return app


def test_the_command_lists_the_studies() -> None:
    shown = CliRunner().invoke(cli(), []).output
    assert all(name in shown for name in STUDIES)


def test_a_pattern_without_conditions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.STUDIES, "mine", tiny(two))
    with pytest.raises(UserError, match=r"no condition of mine is called so. On offer: real, unguided"):
        CliRunner().invoke(cli(), ["mine", "scale=tiny", "--only", "x"], catch_exceptions=False)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, cache: str) -> None:
    (tmp_path / "file").write_text("")
    _, jobs = plan(tiny(two), "tiny", [cache], 1, tmp_path / "file")
    with pytest.raises(UserError, match=r"cannot be written"):
        execute(jobs, "local", 1, "resume", lambda *_: None, print)
    assert os.listdir(tmp_path) == ["file"]
