"""The papers' schedules through the whole of ``train`` in the local runtime, at a small size: exact counts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from raydiff.metrics import read_metrics, select
from raydiff.presets import load_config
from raydiff.replay.samples import read_samples
from raydiff.runtime.session import train
from raydiff.status import StatusBoard
from raydiff.summary import read_summary

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SMALL = ("scale=tiny", "data.transitions=1500", "denoiser.steps=60", "sampler.steps=4", "audit.count=0",
         "generator.sigma_limit=1e9", "evaluation.every=10000", "learner.updates=200", "learner.hidden=[16,16]")  # fmt: skip


def run(preset: str, folder: Path, cache: Path, *overrides: str) -> Path:
    given = [*SMALL, f"output={folder}", f"data.cache={cache}", *overrides]
    with StatusBoard(Console(quiet=True)) as board:
        return train(load_config(CONFIGS / preset, given), "local", "refuse", board)


def trajectories_by_version(folder: Path, arm: str) -> Counter[int]:
    made: Counter[int] = Counter()
    for record in select(read_metrics(folder), "block", arm):
        made[record["policy_version"]] += record["trajectories"] + sum(record["dropped"].values())
    return made


@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_periodic(tmp_path: Path, cache: Path, overlap: float) -> None:
    folder = run("pgd/periodic.yaml", tmp_path, cache, f"schedule.overlap={overlap}")
    made = trajectories_by_version(folder, "guided")
    # A dataset opens half an epoch before its time where that is asked for; its later shards have newer policies.
    opens = [0, *(begins - round(overlap * 50) for begins in (50, 100, 150))]
    for first, begins in zip(opens, (0, 50, 100, 150), strict=True):
        assert sum(count for version, count in made.items() if first <= version <= begins) == 1000
    assert overlap or set(made) == set(opens)
    summary = read_summary(folder)
    assert (summary["updates"], summary["trajectories_generated"]) == (200, 4000)
    assert summary["samples_per_insert"]["target"] is None
    assert summary["arms"]["guided"]["updates_on_real_data_alone"] == 0
    chunks = select(read_metrics(folder), "train", "guided")
    lags = [(record["update"], record["lag"]["max"]) for record in chunks]
    # The local runtime makes a whole dataset before the learner's next call, so that each serves its own updates.
    assert max(lag for _, lag in lags) == 49 if not overlap else max(lag for _, lag in lags) < 100
    guidance = {r["policy_version"]: r["guidance"] for r in select(read_metrics(folder), "block", "guided")}
    assert guidance[0] == "none"
    assert {name for version, name in guidance.items() if version} == {"paper"}


def test_the_first_dataset_is_guided_as_in_the_papers_text(tmp_path: Path, cache: Path) -> None:
    folder = run("pgd/periodic.yaml", tmp_path, cache, "replay.warmup_guidance=true", "schedule.epochs=1")
    assert {record["guidance"] for record in select(read_metrics(folder), "block", "guided")} == {"paper"}
    assert trajectories_by_version(folder, "guided") == {0: 1000}


def test_once(tmp_path: Path, cache: Path) -> None:
    folder = run("synther/published.yaml", tmp_path, cache)
    assert trajectories_by_version(folder, "synther") == {0: 3000}
    summary = read_summary(folder)
    assert (summary["updates"], summary["trajectories_generated"]) == (200, 3000)
    records = read_metrics(folder)
    assert all(record["update"] == 0 for record in select(records, "block", "synther"))
    assert all(record["lag"] is not None for record in select(records, "train", "synther"))
    kept = read_samples(folder / "replay" / "synther_sample.npz")
    real = read_samples(folder / "replay" / "real_sample.npz")
    assert kept["observation"].shape == real["observation"].shape == (256, 2, 17)
    assert np.isfinite(kept["observation"]).all()


def test_continuous_makes_as_many_trajectories(tmp_path: Path, cache: Path) -> None:
    """As many as samples per insert asks for: 200 updates of 240 synthetic rows, 20 per insert, 3 rows each."""
    folder = run("pgd/continuous.yaml", tmp_path, cache, "replay.samples_per_insert=20")
    made = trajectories_by_version(folder, "guided")
    assert made[0] >= 384
    assert sum(made.values()) - 384 == pytest.approx(200 * 240 / 20 / 3, abs=2 * 384)


def test_real_data_stand_in_while_a_dataset_is_made(tmp_path: Path, cache: Path) -> None:
    folder = run("pgd/periodic.yaml", tmp_path, cache, "replay.shortage=real", "learner.chunk=5", "schedule.epochs=2")
    summary = read_summary(folder)
    alone = summary["arms"]["guided"]["updates_on_real_data_alone"]
    assert 0 < alone < summary["updates"] == 200
    assert any(f"{alone:,} of the 200 updates of guided were on real data alone" in line for line in summary["caveats"])
    chunks = select(read_metrics(folder), "train", "guided")
    assert sum(record["updates"] for record in chunks if record["lag"] is None) == alone
    assert summary["trajectories_generated"] == 2000
    assert chunks[0]["lag"] is None  # from the first update on, with nothing generated yet
    assert summary["policy_lag"]["max"] < 110  # of what a dataset serves, its own hundred updates
