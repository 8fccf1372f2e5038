"""Several seeds in one learner (``learner.seeds``): each is, byte for byte, the run of its own that it stands for."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from raydiff.checkpoint import load_policy, policy_files
from raydiff.cli import main
from raydiff.comparison.conditions import compare
from raydiff.comparison.measures import final_means
from raydiff.comparison.runs import load_runs
from raydiff.metrics import Record, read_metrics, scalars, select, without_time

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo.yaml"
SMALL = [
    "scale=tiny", "arms={}", "arms={real_only: {generator.count: 0}}", "data.transitions=1500", "denoiser.steps=30",
    "denoiser.network.width=32", "reward.steps=30", "sampler.steps=6", "refiner.steps=2", "refiner.min_lag=20",
    "generator.batch=64", "generator.sigma_limit=1000000", "replay.generation=64", "replay.warmup=128",
    "learner.updates=60", "learner.chunk=10", "learner.hidden=[32,32]", "learner.batch_size=64", "evaluation.every=30",
    "audit.transitions=16", "evaluation.episodes=1", "evaluation.final_episodes=2",
]  # fmt: skip

AGAINST_REAL_DATA = ("floor", "coverage", "state_coverage", "precision", "state_precision")
"""What an audit holds against a choice of real data, which is one for all seeds."""

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def raydiff(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """``raydiff(*arguments)`` gives the exit code and what was written to the two streams."""

    def run(*arguments: object) -> tuple[int, str, str]:
        patch.setattr(sys, "argv", ["raydiff", *map(str, arguments)])
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stopped:
            main()
        assert isinstance(stopped.value.code, int)
        return stopped.value.code, out.getvalue(), err.getvalue()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYDIFF_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield run


@pytest.fixture(scope="module")
def runs(raydiff: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs ``both`` (seeds 3 and 4 at once), ``three`` and ``four``."""
    folder = tmp_path_factory.mktemp("runs")
    for name, own in (("both", ["seed=3", "learner.seeds=2"]), ("three", ["seed=3"]), ("four", ["seed=4"])):
        code, _, err = raydiff("train", DEMO, "--runtime", "local", *SMALL, f"output={folder}", f"name={name}", *own)
        assert code == 0, err
    return folder


def records(folder: Path, seed: int | None = None) -> list[Record]:
    """Without the clock and the pretraining; of several seeds those of one, without its name."""
    found = [without_time(record) for record in read_metrics(folder) if record["kind"] not in ("pretrain", "event")]
    if seed is None:
        return found
    return [{k: v for k, v in record.items() if k != "seed"} for record in found if record["seed"] == seed]


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize(("name", "seed"), [("three", 3), ("four", 4)])
def test_each_seed_is_the_run_of_its_own(runs: Path, name: str, seed: int) -> None:
    ours, theirs = records(runs / "both", seed), records(runs / name)
    assert {record["kind"] for record in ours} == {"train", "block", "evaluate", "audit"}
    for record in (*ours, *theirs):
        for key in AGAINST_REAL_DATA:
            record.pop(key, None)
    assert ours == theirs
    refreshed = [record for record in ours if record.get("parent_block") is not None]
    assert refreshed
    for arm in ("guided", "real_only"):
        for suffix in ("safetensors", "policy.safetensors"):
            one, other = runs / "both" / "checkpoints" / f"{arm}@seed{seed}.{suffix}", runs / name / "checkpoints"
            assert one.read_bytes() == (other / f"{arm}.{suffix}").read_bytes()


def test_the_seeds_differ(runs: Path) -> None:
    found = policy_files(runs / "both")
    assert list(found) == ["guided@seed3", "guided@seed4", "real_only@seed3", "real_only@seed4"]
    assert len({load_policy(path).checksum for path in found.values()}) == 4
    blocks = [[r["reward_mean"] for r in records(runs / "both", seed) if r["kind"] == "block"] for seed in (3, 4)]
    assert len(blocks[0]) == len(blocks[1])
    assert set(blocks[0]).isdisjoint(blocks[1])


def test_summary_has_each_seed_and_their_mean(runs: Path) -> None:
    found, alone = summary(runs / "both"), [summary(runs / name) for name in ("three", "four")]
    assert (found["seeds"], alone[0]["seeds"]) == ([3, 4], [3])
    assert found["updates"] == 60
    assert found["samples_per_insert"] == alone[0]["samples_per_insert"]
    assert found["trajectories_generated"] == sum(own["trajectories_generated"] for own in alone)
    assert found["policy_lag"]["mean"] == pytest.approx(sum(own["policy_lag"]["mean"] for own in alone) / 2)
    for arm in ("guided", "real_only"):
        score = found["scores"][arm]
        for seed, own in zip(("3", "4"), alone, strict=True):
            assert score["seeds"][seed] == own["scores"][arm]
        for unit in ("normalized", "raw"):
            means = [own["scores"][arm][unit]["mean"] for own in alone]
            assert score[unit]["mean"] == pytest.approx(sum(means) / 2)
            assert score[unit]["standard_error"] == pytest.approx(abs(means[0] - means[1]) / 2)
            assert (score[unit]["seeds"], score[unit]["episodes"]) == (2, 2)
    assert "over the seeds that were trained at once" in found["caveats"][0]
    assert "one run of one seed" in alone[0]["caveats"][0]


def test_provenance_and_samples(runs: Path) -> None:
    both, three = (pq.read_table(runs / name / "replay" / "guided.parquet").to_pylist() for name in ("both", "three"))
    own = [row for row in both if row["run_seed"] == 3]
    assert [row["seed"] for row in own] == [row["seed"] for row in three]
    assert len(both) == 2 * len(three)
    for arm in ("guided_sample", "real_sample"):
        assert (runs / "both" / "replay" / f"{arm}.npz").read_bytes() == (
            runs / "three" / "replay" / f"{arm}.npz"
        ).read_bytes()


def test_tensorboard_tells_the_seeds_apart(runs: Path) -> None:
    trained = select(read_metrics(runs / "both"), "train", "guided")
    assert "guided/seed 4/train/critic_loss" in dict(scalars(next(r for r in trained if r["seed"] == 4)))
    assert "guided/train/critic_loss" in dict(scalars(select(read_metrics(runs / "three"), "train", "guided")[0]))


def test_report(runs: Path, raydiff: Command) -> None:
    code, _, _ = raydiff("report", runs / "both")
    assert code == 0
    page = (runs / "both" / "report" / "index.html").read_text()
    for text in ("guided, 2 seeds", "seed 3", "seed 4", "seeds trained at once", "intervals over 2 seeds", "±"):
        assert text in page, text
    page = (runs / "three" / "report" / "index.html").read_text()
    for text in ("seeds trained at once", "guided, 2 seeds", "±"):
        assert text not in page, text


def test_a_comparison_counts_each_seed_as_a_run(runs: Path) -> None:
    (both,) = load_runs([runs / "both"])
    apart = load_runs([runs / "three", runs / "four"])
    found, same = compare([both]), compare(apart)
    assert [condition.label for condition in found.conditions] == ["guided", "real only"]
    for ours, theirs in zip(found.conditions, same.conditions, strict=True):
        task = found.tasks[0]
        assert ours.seeds(task) == theirs.seeds(task) == [3, 4]
        assert ours.settings == theirs.settings
        assert final_means(ours, task, "raw") == final_means(theirs, task, "raw")
    joint = compare([both, *apart])
    assert len(joint.conditions) == 2
    assert len(joint.repeated) == 4  # the same seeds once more


def test_evaluate_plays_each_seed(runs: Path, raydiff: Command, tmp_path: Path) -> None:
    for names in (["both"], ["three", "four"]):
        out = tmp_path / f"{names[0]}.json"
        folders = [runs / name for name in names]
        code, _, err = raydiff("evaluate", *folders, "--arm", "guided", "--episodes", 1, "--json", out)
        assert code == 0, err
    ours, theirs = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("both", "three"))
    assert [row["seed"] for row in ours["policies"]] == [3, 4]
    assert [row["returns"] for row in ours["policies"]] == [row["returns"] for row in theirs["policies"]]
    assert ours["tasks"] == theirs["tasks"]


def test_export_finds_a_seed(runs: Path, raydiff: Command, tmp_path: Path) -> None:
    arguments = ["export", runs / "both", "--formats", "safetensors", "--out"]
    assert raydiff(*arguments, tmp_path / "first")[0] == 0
    assert raydiff(*arguments, tmp_path / "second", "--seed", 4)[0] == 0
    assert raydiff("export", runs / "four", *arguments[2:], tmp_path / "alone", "--seed", 4)[0] == 0
    origins = [json.loads((tmp_path / name / "policy.json").read_text())["origin"] for name in ("first", "second")]
    assert [(origin["arm"], origin["seed"]) for origin in origins] == [("guided", 3), ("guided", 4)]
    weights = [(tmp_path / name / "policy.safetensors").read_bytes() for name in ("first", "second", "alone")]
    assert weights[0] != weights[1] == weights[2]
    code, _, err = raydiff(*arguments, tmp_path / "none", "--seed", 5)
    assert code == 2
    assert "guided has trained 3, 4" in err


def test_bad_input(raydiff: Command, tmp_path: Path) -> None:
    for given in ("learner.seeds=0", "learner.seeds=[0,1]"):
        code, _, err = raydiff("train", DEMO, "--runtime", "local", *SMALL, f"output={tmp_path}", given)
        assert code == 2
        assert "learner.seeds" in err
    assert not list(tmp_path.iterdir())


def test_an_update_of_one_seed_that_went_wrong_is_repeated_alone(raydiff: Command, tmp_path: Path) -> None:
    diverging = ["learner.seeds=3", "generator.count=0", "arms={}", "learner.learning_rate=1e18", f"output={tmp_path}"]
    code, _, err = raydiff("train", DEMO, "--runtime", "local", *SMALL, *diverging, "name=x", "seed=7")
    assert code == 1
    (path,) = (tmp_path / "x" / "bad_states").iterdir()
    assert path.name.startswith("real_only@seed")
    assert f"real_only, seed {path.name.removeprefix('real_only@seed').partition('-')[0]}: " in err
    code, out, err = raydiff("train", "--replay-batch", path)
    assert (code, err) == (0, "")
    assert "bit by bit" in " ".join(out.split())
