"""``raydiff train --runtime local`` as a user runs it, at its smallest: the whole path without Ray."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from raydiff.checkpoint import load_policy
from raydiff.cli import main
from raydiff.metrics import Record, read_metrics, select, without_time
from raydiff.presets import config_hash, load_config

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo.yaml"
SMALL = [
    "scale=tiny", "arms={}", "data.transitions=1500", "denoiser.steps=30", "denoiser.network.width=32",
    "reward.steps=30", "sampler.steps=6", "refiner.steps=2", "refiner.min_lag=20", "generator.batch=64",
    "replay.generation=64", "replay.warmup=128", "learner.updates=60", "learner.chunk=10", "learner.hidden=[32,32]",
    "learner.batch_size=64", "evaluation.every=30", "audit.transitions=16", "evaluation.final_episodes=2",
]  # fmt: skip

Train = Callable[..., Path]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Train]:
    """``train(name, *overrides)`` runs the command and returns the folder that its last line names."""
    folder = tmp_path_factory.mktemp("local")

    def run(name: str, *overrides: str) -> Path:
        arguments = [str(DEMO), "--runtime", "local", *SMALL, f"output={folder / 'runs'}", f"name={name}", *overrides]
        patch.setattr(sys, "argv", ["raydiff", "train", *arguments])
        with redirect_stdout(io.StringIO()) as output, pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 0
        assert output.getvalue().rstrip().splitlines()[-1] == str(folder / "runs" / name)
        return folder / "runs" / name

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYDIFF_CACHE", str(folder / "cache"))
        yield run


@pytest.fixture(scope="module")
def first(train: Train) -> Path:
    return train("first", "arms={real_only: {generator.count: 0}}")


@pytest.fixture(scope="module")
def second(first: Path, train: Train) -> Path:
    """The same command again, with everything in the cache by now."""
    return train("second", "arms={real_only: {generator.count: 0}}")


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def records(folder: Path) -> list[Record]:
    """Without the clock, and without the pretraining that only the first run with a cache needs."""
    return [without_time(record) for record in read_metrics(folder) if record["kind"] != "pretrain"]


def assert_learned(folder: Path, arm: str) -> list[Record]:
    """Every update is there with finite losses, and the last policy was scored; returns the train records."""
    trained = select(read_metrics(folder), "train", arm)
    assert [record["update"] for record in trained] == [10, 20, 30, 40, 50, 60]
    assert all(math.isfinite(value) for record in trained for value in record["losses"].values())
    final = [record for record in select(read_metrics(folder), "evaluate", arm) if record["final"]]
    assert [record["update"] for record in final] == [60]
    assert len(final[0]["returns"]) == 2
    assert summary(folder)["updates"] == 60
    return trained


def test_same_seed_same_records(first: Path, second: Path) -> None:
    one, two = records(first), records(second)
    assert len(one) == len(two)
    for left, right in zip(one, two, strict=True):
        assert left == right
    kinds = {record["kind"] for record in one}
    assert {"train", "block", "evaluate", "audit"} <= kinds


def test_same_seed_same_checkpoints(first: Path, second: Path) -> None:
    names = sorted(path.name for path in (first / "checkpoints").iterdir())
    assert names == [
        "guided.policy.safetensors", "guided.safetensors", "real_only.policy.safetensors", "real_only.safetensors",
    ]  # fmt: skip
    for name in names:
        assert (first / "checkpoints" / name).read_bytes() == (second / "checkpoints" / name).read_bytes()


def test_same_seed_same_summary_but_for_the_clock(first: Path, second: Path) -> None:
    one, two = summary(first), summary(second)
    timed = ("seconds", "arms", "overlap_fraction", "learner_wait_fraction", "generator_idle_fraction")
    for key in one:
        if key not in timed:
            assert one[key] == two[key], key


def test_another_seed_differs(first: Path, train: Train) -> None:
    other = train("other", "seed=1")
    assert load_policy(other / "checkpoints" / "guided.policy.safetensors").checksum != (
        load_policy(first / "checkpoints" / "guided.policy.safetensors").checksum
    )
    left, right = (select(records(folder), "block", "guided") for folder in (first, other))
    assert [block["reward_mean"] for block in left] != [block["reward_mean"] for block in right]


def test_models_and_data_are_made_once(first: Path, second: Path) -> None:
    assert select(read_metrics(first), "pretrain")
    assert select(read_metrics(second), "pretrain") == []


def test_run_folder(first: Path) -> None:
    for name in (
        "config.yaml", "metrics.jsonl", "summary.json", "report/index.html", "replay/guided.parquet",
        "checkpoints/guided.safetensors",
    ):  # fmt: skip
        assert (first / name).stat().st_size > 0, name
    assert list((first / "tensorboard").iterdir())
    assert len(list((first / "report").glob("*.png")) + list((first / "report").glob("*.svg"))) >= 2
    assert not list(first.rglob("*.part"))
    assert load_policy(first / "checkpoints" / "guided.policy.safetensors").version == 60
    config = load_config(first / "config.yaml")
    assert summary(first)["config_hash"] == config_hash(config)
    assert config.arms == {"real_only": {"generator.count": 0}}


def test_summary_says_everything(first: Path) -> None:
    found = summary(first)
    assert found["main"] == "guided"
    assert found["scores"].keys() == {"behaviour", "real_only", "guided"}
    for arm, score in found["scores"].items():
        for unit in ("normalized", "raw"):
            assert score[unit].keys() == {"mean", "low", "high", "episodes"}
            assert score[unit]["low"] <= score[unit]["mean"] <= score[unit]["high"]
            assert score[unit]["episodes"] == (1 if arm == "behaviour" else 2)
    blocks = select(read_metrics(first), "block", "guided")
    fresh = [block for block in blocks if block["parent_block"] is None]
    assert found["updates"] == 60
    assert found["trajectories_generated"] == sum(block["trajectories"] for block in fresh) > 0
    refreshed = sum(block["trajectories"] for block in blocks) - found["trajectories_generated"]
    assert found["trajectories_refined"] == refreshed > 0
    for fraction in ("overlap_fraction", "learner_wait_fraction"):
        assert 0 <= found[fraction] <= 1
    lags = [record["lag"] for record in select(read_metrics(first), "train", "guided")]
    assert found["policy_lag"]["max"] == max(lag["max"] for lag in lags)
    assert found["policy_lag"]["mean"] == pytest.approx(sum(lag["mean"] for lag in lags) / len(lags))
    assert found["samples_per_insert"]["target"] == 32
    assert 0 < found["samples_per_insert"]["achieved"] <= 64
    assert found["seconds"].keys() >= {"data", "main run", "total"}
    assert 0 < found["seconds"]["main run"] < found["seconds"]["total"]
    assert found["dataset"]["id"].startswith("HalfCheetah-v4-random-1500")
    assert len(found["dataset"]["hash"]) == 64
    assert found["dataset"]["environment"] == "HalfCheetah-v4"
    assert found["dataset"]["mujoco"] == found["versions"]["mujoco"]
    assert {"python", "raydiff", "torch", "numpy", "ray", "gymnasium"} <= found["versions"].keys()
    assert all(isinstance(version, str) for version in found["versions"].values())


def test_provenance_of_every_block(first: Path) -> None:
    table = pq.read_table(first / "replay" / "guided.parquet").to_pylist()
    blocks = select(read_metrics(first), "block", "guided")
    assert [row["block"] for row in table] == [block["block"] for block in blocks]
    versions = {row["block"]: row["policy_version"] for row in table}
    for row in table:
        if row["parent_block"] is not None:
            assert versions[row["parent_block"]] < row["policy_version"]


def test_generators_that_are_switched_off(train: Train) -> None:
    folder = train("real", "generator.count=0")
    assert all(record["lag"] is None for record in assert_learned(folder, "real_only"))
    found = summary(folder)
    assert found["main"] == "real_only"
    assert found["trajectories_generated"] == found["trajectories_refined"] == 0
    assert set(found["scores"]) == {"behaviour", "real_only"}
    assert found["samples_per_insert"] == {"target": None, "achieved": None}
    assert select(read_metrics(folder), "block") == []


def test_without_guidance(train: Train) -> None:
    folder = train("unguided", "guidance.kind=none")
    assert_learned(folder, "unguided")
    blocks = select(read_metrics(folder), "block", "unguided")
    assert {(block["guidance"], block["strength"]) for block in blocks} == {("none", 0.0)}
    assert summary(folder)["trajectories_refined"] == 0


def test_iql(train: Train) -> None:
    folder = train("iql", "learner.algorithm=iql")
    assert all("value_loss" in record["losses"] for record in assert_learned(folder, "guided"))
    assert "score_exact" in {block["guidance"] for block in select(read_metrics(folder), "block", "guided")}


def test_guidance_as_published(train: Train) -> None:
    folder = train("paper", "guidance.mode=paper", "guidance.strength=0.2")
    assert_learned(folder, "guided")
    blocks = select(read_metrics(folder), "block", "guided")
    guided = [block for block in blocks if block["guidance"] == "paper" and block["parent_block"] is None]
    assert guided
    assert all(block["strength"] == pytest.approx(0.2 * 256 / 6) for block in guided)


def test_unet(train: Train) -> None:
    folder = train(
        "unet", "denoiser.network.kind=unet", "denoiser.network.width=16", "denoiser.network.depth=2",
        "denoiser.length=4",
    )  # fmt: skip
    assert_learned(folder, "guided")
    assert {record["model"] for record in select(read_metrics(folder), "pretrain")} == {"denoiser"}


@pytest.mark.parametrize("environment", ["hopper", "walker2d"])
def test_data_with_terminals(train: Train, environment: str) -> None:
    folder = train(environment, f"data.environment={environment}")
    assert_learned(folder, "guided")
    found = summary(folder)
    assert found["dataset"]["environment"].lower().startswith(environment)
    assert found["scores"]["behaviour"]["raw"]["episodes"] > 10
    blocks = select(read_metrics(folder), "block", "guided")
    assert any(block["transitions"] < 2 * block["trajectories"] for block in blocks)  # some ended early


def test_limit_on_the_age_of_data(train: Train) -> None:
    folder = train("fresh", "replay.max_lag=25", "replay.lifetime=2")
    trained = assert_learned(folder, "guided")
    assert 10 < max(record["lag"]["max"] for record in trained) <= 25


def test_losses_that_are_not_finite_fail_the_run(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AssertionError):
        train("diverged", "generator.count=0", "learner.learning_rate=1e30")
    error = capsys.readouterr().err
    assert error.startswith("raydiff: the run failed: real_only: critic_loss")
    assert "became non-finite in update 2. The batch and the learner's state before it are in " in error
    assert "Traceback" not in error
