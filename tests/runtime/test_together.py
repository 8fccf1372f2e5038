"""Several learners in one run, in one process: by turns, each as if it were alone; one that fails stops no other."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from raydiff.comparison.conditions import compare
from raydiff.comparison.runs import load_runs
from raydiff.errors import RunFailed
from raydiff.metrics import Record, read_metrics, select, without_time
from raydiff.presets import load_config
from raydiff.runtime import session
from raydiff.status import StatusBoard

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo.yaml"
SMALL = [
    "scale=tiny", "arms={}", "data.transitions=1500", "denoiser.steps=30", "denoiser.network.width=32",
    "reward.steps=30", "sampler.steps=6", "refiner.steps=2", "refiner.min_lag=20", "generator.batch=64",
    "replay.generation=64", "replay.warmup=128", "learner.updates=60", "learner.chunk=10", "learner.hidden=[32,32]",
    "learner.batch_size=64", "evaluation.every=30", "audit.transitions=16", "evaluation.final_episodes=2",
]  # fmt: skip
ARMS = ["arms.iql.learner.algorithm=iql", "arms.iql.generator.count=1", "arms.seed.seed=[1]", "arms_together=true",
        "arms.real_only.generator.count=0"]  # fmt: skip
ALONE = {"guided": [], "iql": ["learner.algorithm=iql", "generator.count=1"], "seed_1": ["seed=1"]}

Train = Callable[..., Path]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """``train(name, *overrides)`` runs the demo at its smallest in this process and returns its folder."""
    folder = tmp_path_factory.mktemp("together")

    def run(name: str, *overrides: str) -> Path:
        places = [f"output={folder / 'runs'}", f"name={name}", f"data.cache={folder / 'cache'}"]
        config = load_config(DEMO, [*SMALL, *places, *overrides])
        with StatusBoard(Console(file=io.StringIO())) as board:
            return session.train(config, "local", "refuse", board)

    return run


@pytest.fixture(scope="module")
def together(train: Train) -> Path:
    return train("together", *ARMS)


def of_arm(folder: Path, arm: str) -> list[Record]:
    """What an arm did, without the clock and without its name."""
    own = [without_time(record) for record in read_metrics(folder) if record.get("arm") == arm]
    return [{key: value for key, value in record.items() if key != "arm"} for record in own]


def blocks(folder: Path, arm: str) -> list[dict[str, Any]]:
    """Where an arm's blocks came from, without the clock."""
    table = pq.read_table(folder / "replay" / f"{arm}.parquet").to_pylist()
    return [{key: value for key, value in row.items() if not key.startswith("time_")} for row in table]


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize("arm", ALONE)
def test_an_arm_does_what_a_run_of_its_own_does(train: Train, together: Path, arm: str) -> None:
    alone = train(f"alone-{arm}", *ALONE[arm])
    assert of_arm(together, arm) == of_arm(alone, "guided") != []
    for suffix in (".safetensors", ".policy.safetensors"):
        mine, other = (folder / "checkpoints" for folder in (together, alone))
        assert (mine / f"{arm}{suffix}").read_bytes() == (other / f"guided{suffix}").read_bytes()
    assert blocks(together, arm) == blocks(alone, "guided")


def test_the_arms_take_turns(together: Path) -> None:
    updates = [(record["arm"], record["update"]) for record in select(read_metrics(together), "train")]
    late = [arm for arm, _ in updates if arm != "real_only"]
    assert set(late[:6]) == {"guided", "iql", "seed_1"}  # not one after the other
    assert [arm for arm, _ in updates[:6]] == ["real_only"] * 6  # beside the pretraining, as ever
    # One data set, one denoiser: it was trained once, for all of them.
    models = {record["model"] for record in select(read_metrics(together), "pretrain")}
    steps = [r["step"] for r in select(read_metrics(together), "pretrain") if r["model"] == "denoiser"]
    assert "denoiser" in models
    assert steps == sorted(set(steps))


def test_the_summary_has_every_arm(together: Path) -> None:
    found = summary(together)
    assert set(found["arms"]) == {"guided", "iql", "seed_1", "real_only"}
    assert found["failed"] == {}
    for arm in ("guided", "iql", "seed_1"):
        own = found["arms"][arm]
        assert own["updates"] == 60
        assert own["trajectories_generated"] > 0
        assert own["samples_per_insert"]["target"] == 32
        assert 0 <= own["overlap_fraction"] <= 1
        assert own["policy_lag"]["max"] > 0
        assert found["scores"][arm]["raw"]["episodes"] == 2
    assert found["overlap_fraction"] == found["arms"]["guided"]["overlap_fraction"]
    assert found["seconds"]["arms together"] > 0
    assert (together / "report" / "index.html").is_file()


def test_seeds_are_one_condition(together: Path) -> None:
    conditions = {condition.label: condition for condition in compare(load_runs([together])).conditions}
    assert set(conditions) == {"guided", "real only", "iql"}
    [task] = {trial.task for trial in conditions["guided"].trials}
    assert conditions["guided"].seeds(task) == [0, 1]


def test_one_that_fails_stops_no_other(train: Train, together: Path) -> None:
    with pytest.raises(RunFailed, match=r"1 of 4 arms failed \(iql: .*non-finite.*\)\. .*failing has what the others"):
        train("failing", *ARMS, "arms.iql.learner.learning_rate=1e30")
    folder = together.parent / "failing"
    assert of_arm(folder, "guided") == of_arm(together, "guided")
    assert (folder / "checkpoints" / "guided.safetensors").is_file()
    assert list((folder / "bad_states").glob("iql-update-*.safetensors"))
    found = summary(folder)
    assert "iql" not in found["arms"]
    assert "non-finite" in found["failed"]["iql"]
    assert any(line.startswith("iql failed and has no final score: ") for line in found["caveats"])
    [event] = [r for r in select(read_metrics(folder), "event", "iql") if r["event"] == "arm_failed"]
    assert "non-finite" in event["detail"]


def test_without_the_runs_own_learner_there_is_no_summary(train: Train, together: Path) -> None:
    with pytest.raises(RunFailed, match=r"1 of 2 arms failed \(guided: "):
        train("headless", "learner.learning_rate=1e30", "arms_together=true",
              "arms.slow={learner.learning_rate: 0.001}")  # fmt: skip
    folder = together.parent / "headless"
    assert not (folder / "summary.json").exists()
    assert (folder / "checkpoints" / "slow.safetensors").is_file()
    assert [r["final"] for r in select(read_metrics(folder), "evaluate", "slow")].count(True) == 1
    assert (folder / "report" / "index.html").is_file()


def test_by_themselves_one_that_fails_ends_the_run(train: Train, together: Path) -> None:
    with pytest.raises(RunFailed, match="non-finite"):
        train("ending", *ARMS, "arms_together=false", "arms.iql.learner.learning_rate=1e30")
    assert not (together.parent / "ending" / "summary.json").exists()
