from __future__ import annotations

import io
import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from rich.console import Console

from raydiff.errors import UserError
from raydiff.figures import learning_curves, run_arms, synthetic_data
from raydiff.gantt import rows, timeline
from raydiff.metrics import MetricsWriter, Record
from raydiff.replay.samples import write_samples
from raydiff.report import key_figures, score_table, write_report
from raydiff.types import Trajectories

CHUNK, UPDATES = 50, 10_000
ZERO = 1_700_000_000.0  # when the run began, in seconds since the epoch
FINALS = {"guided": 13.6, "real_only": 10.8, "unguided": 5.3, "real_only_alpha_5": 15.0}


def score(mean: float, spread: float, episodes: int) -> dict[str, Any]:
    return {"mean": mean, "low": mean - spread, "high": mean + 1.2 * spread, "episodes": episodes}


def raw(value: dict[str, Any]) -> dict[str, Any]:
    return {k: v if k == "episodes" else -280.0 + 124.2 * v for k, v in value.items()}


def evaluation(arm: str, update: int, mean: float, final: bool, start: float) -> Record:
    normalized = score(mean, 0.8 if final else 1.5, 20 if final else 5)
    time = {"worker": "evaluator/0", "start": start, "end": start + (6.0 if final else 1.6)}
    return {"kind": "evaluate", "arm": arm, "update": update, "final": final, "returns": [1.0],
            "normalized": normalized, "raw": raw(normalized), "time": time}  # fmt: skip


def learner_records(rng: np.random.Generator, arm: str, begin: float, pace: float, synthetic: bool) -> list[Record]:
    """Chunks and evaluations of one arm; ``pace`` is seconds per chunk."""
    records: list[Record] = []
    at = begin
    for update in range(CHUNK, UPDATES + 1, CHUNK):
        waited = float(rng.exponential(0.004))
        start, at = at + waited, at + waited + pace * float(rng.uniform(0.9, 1.1))
        mean = 150 * (1 - np.exp(-update / 900)) + float(rng.normal(0, 6))
        records.append({
            "kind": "train", "arm": arm, "update": update, "updates": CHUNK,
            "losses": {"critic_loss": 4.0 / (1 + update / 2000), "actor_loss": -1.2},
            "lag": {"mean": mean, "max": int(mean * 2.2 + 60)} if synthetic else None,
            "synthetic_sampled": update * 128 if synthetic else 0,
            "synthetic_inserted": update * 4 if synthetic else 0,
            "time": {"worker": "learner", "start": start, "end": at, "waited": waited},
        })  # fmt: skip
        if update % 1000 == 0:
            mean = 1.0 + (FINALS[arm] - 1.0) * (1 - np.exp(-update / 2500)) + float(rng.normal(0, 0.7))
            records.append(evaluation(arm, update, mean, False, at + 0.05))
    records.append(evaluation(arm, UPDATES, FINALS[arm], True, at + 1.8))
    return records


def block_records(rng: np.random.Generator, arm: str, begin: float, train: float, end: float) -> list[Record]:
    """Two generators and a refiner, and an audit of every third block; ``train`` is when the learner begins."""
    records: list[Record] = []
    number = 0
    for worker, seconds in (("generator/0", 1.9), ("generator/1", 2.0), ("refiner/0", 0.9)):
        refreshed = worker.startswith("refiner")
        at = train + 6.0 if refreshed else begin
        while at + seconds < end:
            start, at = at + 0.03, at + 0.03 + seconds * float(rng.uniform(0.9, 1.15))
            update = max(0, int((at - train) / (end - train) * UPDATES)) // CHUNK * CHUNK
            base = 0.33 if update == 0 else 0.05 + 0.03 * np.exp(-update / 3000)
            base *= 1.0 if arm == "guided" or update == 0 else 5.0
            records.append({
                "kind": "block", "arm": arm, "block": number, "parent_block": max(0, number - 7) if refreshed else None,
                "generator": worker, "policy_version": max(0, update - 100), "update": update,
                "trajectories": 512, "transitions": 1024, "nfe": 11 if refreshed else 31,
                "deviation": base * float(rng.uniform(0.85, 1.15)) * (0.8 if refreshed else 1.0),
                "reward_mean": -0.1,
                "dropped": {"sigma_limit": 3}, "time": {"worker": worker, "start": start, "end": at},
            })  # fmt: skip
            if number % 3 == 0:
                error = float(rng.uniform(0.06, 0.085)) * (1.15 if refreshed else 1.0)
                records.append({
                    "kind": "audit", "arm": arm, "block": number, "update": update, "refreshed": refreshed,
                    "dynamics_error": error * 0.8, "dynamics_error_median": error * 0.5, "persistence_error": 0.8,
                    "reward_error": 0.02, "transitions": 128, "skipped": 0,
                    "time": {"worker": "evaluator/0", "start": at + 0.1, "end": at + 0.2},
                })  # fmt: skip
            number += 1
    return records


def realistic_records() -> list[Record]:
    """A run of four arms: pretraining beside real_only, then guided, unguided, and real_only with another alpha."""
    rng, zero = np.random.default_rng(0), ZERO
    records: list[Record] = [
        {"kind": "pretrain", "step": step, "steps": 16_000, "loss": 0.6 / (1 + step / 4000) + 0.2,
         "holdout_loss": None, "time": {"at": zero + step / 16_000 * 170}}
        for step in range(0, 16_001, 400)
    ]  # fmt: skip
    records += learner_records(rng, "real_only", zero + 2, 0.21, synthetic=False)
    at = zero + 172
    for arm in ("guided", "unguided"):
        train = at + 9
        chunks = learner_records(rng, arm, train, 0.33, synthetic=True)
        end = max(r["time"]["end"] for r in chunks if r["kind"] == "train")
        records += [*chunks, *block_records(rng, arm, at, train, end)]
        if arm == "guided":
            lost = {"kind": "event", "arm": arm, "event": "worker_lost", "worker": "generator/1", "detail": "killed"}
            records.append({**lost, "time": {"at": at + 40}})
        at = end + 9
    return records + learner_records(rng, "real_only_alpha_5", at, 0.21, synthetic=False)


def realistic_summary() -> dict[str, Any]:
    scores: dict[str, Any] = {
        arm: {"normalized": score(mean, 0.8, 20), "raw": raw(score(mean, 0.8, 20))} for arm, mean in FINALS.items()
    }
    scores["behaviour"] = {"normalized": score(0.0, 0.2, 100), "raw": raw(score(0.0, 0.2, 100))}
    scores["tuned"] = None
    return {
        "scores": scores, "updates": UPDATES, "trajectories_generated": 36_864, "trajectories_refined": 9_216,
        "overlap_fraction": 0.934, "learner_wait_fraction": 0.012, "generator_idle_fraction": None,
        "policy_lag": {"mean": 141.2, "max": 395}, "samples_per_insert": {"target": 32.0, "achieved": 31.7},
        "seconds": {"pretrain": 170.2, "guided": 66.0}, "config_hash": "ab12cd34",
        "dataset": {"id": "halfcheetah-random-self", "hash": "0f3a", "environment": "HalfCheetah-v4", "mujoco": "3.3"},
        "versions": {"raydiff": "0.1.0", "torch": "2.13"}, "discards": {"sigma_limit": 216},
        "caveats": ["One dataset & one denoiser <only>.", "Settings were chosen on evaluation return."],
    }  # fmt: skip


def write_run(folder: Path, records: list[Record], summary: dict[str, Any] | None) -> Path:
    with MetricsWriter(folder) as writer:
        for record in records:
            writer.write(record)
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary, sort_keys=True))
        (folder / "config.yaml").write_text(yaml.safe_dump({"name": "demo", "replay": {"max_lag": 500}}))
    return folder


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return realistic_records()


@pytest.fixture(scope="module")
def arms(records: list[Record]) -> list[str]:
    return run_arms(records, realistic_summary()["scores"])


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", data[16:24])  # type: ignore[return-value]


def line(axes: Axes, label: str) -> np.ndarray:
    (found,) = [line for line in axes.get_lines() if line.get_label() == label]
    return np.asarray(found.get_xydata())


def test_whole_report(tmp_path: Path, records: list[Record]) -> None:
    run = write_run(tmp_path / "demo", records, realistic_summary())
    written = write_report(run)
    names = ["learning_curves.png", "synthetic_data.png", "timeline.png", "index.html"]
    assert [path.name for path in written] == names
    assert sorted(path.name for path in (run / "report").iterdir()) == sorted(names)  # and no temporary file
    for path in written[:3]:
        width, height = png_size(path)
        assert 1200 <= width <= 2400
        assert 500 <= height <= 2600
    page = written[-1].read_text()
    visible = re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
    assert page.count("data:image/png;base64,") == 3
    assert not re.search(r"https?:|//|<script|<link|@import|url\(", visible)
    for text in ("real only alpha 5", "13.6", "[12.8, 14.6]", "93.4 %", "not measured", "not run", "max_lag: 500",
                 "One dataset &amp; one denoiser &lt;only&gt;.", "one training seed", "HalfCheetah-v4"):  # fmt: skip
        assert text in visible, text


def test_learning_curves_draw_the_given_values(records: list[Record], arms: list[str]) -> None:
    figure = learning_curves(records, arms, realistic_summary()["scores"])
    assert figure is not None
    left, right = figure.axes
    for arm in FINALS:
        own = [r for r in records if r["kind"] == "evaluate" and r["arm"] == arm]
        want = [(r["update"], r["normalized"]["mean"]) for r in own if not r["final"] and r["update"] < UPDATES]
        want.append((UPDATES, FINALS[arm]))  # the final evaluation stands for the last update
        np.testing.assert_allclose(line(left, arm.replace("_", " ")), want)
    assert set(line(left, "behaviour")[:, 1]) == {0.0}
    assert left.get_legend() is None
    assert "over episodes of one seed" in " ".join(text.get_text() for text in left.texts)
    # Band of the guided arm: its interval at every update.
    band = left.collections[0].get_paths()[0].vertices
    own = [r["normalized"] for r in records if r["kind"] == "evaluate" and r["arm"] == "guided" and r["final"]]
    assert {own[0]["low"], own[0]["high"]} <= set(np.asarray(band)[:, 1].tolist())
    assert [tick.get_text() for tick in right.get_xticklabels()] == [
        arm.replace("_", " ") for arm in arms if arm in FINALS
    ]
    assert {text.get_text() for text in right.texts} == {f"{mean:.1f}" for mean in FINALS.values()}


def test_an_exact_simulators_floor_does_not_stretch_the_axis(records: list[Record], arms: list[str]) -> None:
    figure = synthetic_data(records, arms, floor=8e-15)
    assert figure is not None
    dynamics = figure.axes[1]
    assert set(line(dynamics, "floor: real data, 8e-15")[:, 1]) == {8e-15}
    assert dynamics.get_yscale() == "linear" or dynamics.get_ylim()[0] > 1e-6


def test_synthetic_data_draws_the_given_values(records: list[Record], arms: list[str]) -> None:
    figure = synthetic_data(records, arms, max_lag=500, floor=0.01)
    assert figure is not None
    deviation, dynamics, lag = figure.axes
    blocks = [r for r in records if r["kind"] == "block" and r["arm"] == "guided"]
    groups = {
        "guided: warm-up": [r for r in blocks if r["parent_block"] is None and r["update"] == 0],
        "guided: new": [r for r in blocks if r["parent_block"] is None and r["update"] > 0],
        "guided: refreshed": [r for r in blocks if r["parent_block"] is not None],
    }
    for label, group in groups.items():
        assert group
        np.testing.assert_allclose(line(deviation, label), [(r["update"], r["deviation"]) for r in group])
    audits = [r for r in records if r["kind"] == "audit" and r["arm"] == "unguided" and r["refreshed"]]
    want = [(r["update"], r["dynamics_error"] / r["persistence_error"]) for r in audits]
    np.testing.assert_allclose(line(dynamics, "unguided: refreshed"), want)
    assert set(line(dynamics, "floor: real data, 0.01")[:, 1]) == {0.01}
    chunks = [r for r in records if r["kind"] == "train" and r["arm"] == "guided"]
    np.testing.assert_allclose(line(lag, "guided: mean"), [(r["update"], r["lag"]["mean"]) for r in chunks])
    np.testing.assert_allclose(line(lag, "guided: max"), [(r["update"], r["lag"]["max"]) for r in chunks])
    assert set(line(lag, "limit")[:, 1]) == {500}


def test_timeline_draws_every_call(records: list[Record], arms: list[str]) -> None:
    figure = timeline(records, arms)
    assert figure is not None
    lines = rows(records, arms)
    guided = [row for row in lines if row.arm == "guided"]
    assert [(row.arm, row.worker) for row in lines[:3]] == [
        ("shared", "pretrainer"), ("real_only", "learner"), ("real_only", "evaluator/0"),
    ]  # fmt: skip
    assert [row.worker for row in guided] == [
        "learner", "generator/0", "generator/1", "refiner/0", "evaluator/0",
    ]  # fmt: skip
    whole = figure.axes[0]
    assert [tick.get_text() for tick in whole.get_yticklabels()] == [row.worker for row in lines]
    for axes, lines_shown, exact in ((whole, lines, False), (figure.axes[1], guided, True)):
        for kind, refreshed in (("new block", False), ("refreshed block", True)):
            place = next(i for i, row in enumerate(lines_shown) if row.arm == "guided" and kind in row.bars)
            worker = lines_shown[place].worker
            want = [
                (r["time"]["start"] - ZERO, r["time"]["end"] - ZERO)
                for r in records
                if r["kind"] == "block" and r["arm"] == "guided" and r["generator"] == worker
            ]
            assert bool(worker.startswith("refiner")) is refreshed
            bars = [c for c in axes.collections if abs(c.get_paths()[0].get_extents().y0 - (place - 0.36)) < 1e-6]
            drawn = [(path.get_extents().x0, path.get_extents().x1) for path in bars[0].get_paths()]
            if exact:
                np.testing.assert_allclose(drawn, want)
            else:  # calls 0.03 s apart are one bar where a pixel is a third of a second
                np.testing.assert_allclose(drawn, [(want[0][0], want[-1][1])])
    crosses = [ln for ln in whole.get_lines() if ln.get_marker() == "x" and len(ln.get_xdata())]
    assert [tuple(ln.get_xydata()[0]) for ln in crosses] == [(212.0, [r.worker for r in lines].index("generator/1"))]
    assert len({to_hex(c.get_facecolor()[0]) for c in whole.collections if len(c.get_facecolor())}) >= 5


def test_run_without_synthetic_data(tmp_path: Path, records: list[Record]) -> None:
    real = [r for r in records if r.get("arm") == "real_only"]
    run = write_run(tmp_path / "real", real, None)
    (run / "report").mkdir()
    (run / "report" / "synthetic_data.png").write_bytes(b"from an earlier report")
    assert [path.name for path in write_report(run)] == ["learning_curves.png", "timeline.png", "index.html"]
    assert not (run / "report" / "synthetic_data.png").exists()
    page = (run / "report" / "index.html").read_text()
    assert "no synthetic data" in page
    assert "the run has not ended" in page


def test_run_that_has_hardly_begun(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "new", [{"kind": "event", "event": "wait", "worker": None, "detail": "x", "time": {}}], None
    )
    assert [path.name for path in write_report(run)] == ["index.html"]
    with pytest.raises(UserError, match="no metrics file"):
        write_report(tmp_path / "nowhere")


def test_run_without_reference_scores_is_drawn_by_its_returns(tmp_path: Path, records: list[Record]) -> None:
    plain = [r | {"normalized": None} if r["kind"] == "evaluate" else r for r in records]
    figure = learning_curves(plain, ["guided"], {})
    assert figure is not None
    assert figure.axes[0].get_ylabel() == "return"
    own = [r for r in plain if r["kind"] == "evaluate" and r["arm"] == "guided" and r["update"] < UPDATES]
    np.testing.assert_allclose(line(figure.axes[0], "guided")[:-1, 1], [r["raw"]["mean"] for r in own])
    page = write_report(write_run(tmp_path / "raw", plain, None))[-1].read_text()
    assert "No reference returns are known" in page
    assert "highest mean 1,583.0" in page  # of real_only_alpha_5, whose final return is -280 + 124.2 * 15


def test_trajectories_of_a_maze_are_drawn_where_the_run_kept_some(tmp_path: Path, records: list[Record]) -> None:
    summary = realistic_summary()
    summary["dataset"]["environment"] = "maze2d-umaze-v1"
    run = write_run(tmp_path / "maze", records, summary)
    assert "maze.png" not in [path.name for path in write_report(run)]  # no samples yet
    rows = np.zeros((8, 5, 4 + 2 + 2), np.float32)
    rows[..., :2] = 1.0  # a free place
    write_samples(run / "replay" / "real_sample.npz", Trajectories(rows, 4, 2))
    rows[:6, 3, :2] = 2.0  # inside a wall
    write_samples(run / "replay" / "guided_sample.npz", Trajectories(rows, 4, 2))
    written = write_report(run)
    assert "maze.png" in [path.name for path in written]
    page = written[-1].read_text()
    assert "never enter a wall: real 100 % of 8; guided 25 % of 8." in page


def test_pictures_say_what_they_show(tmp_path: Path, records: list[Record]) -> None:
    page = write_report(write_run(tmp_path / "demo", records, realistic_summary()))[-1].read_text()
    shown = re.findall(r'class="shows">([^<]*)<', page)
    assert shown[0].startswith(
        "Last policies: highest mean 15.0 [14.2, 16.0] for real only alpha 5, then 13.6 [12.8, 14.6]"
    )
    assert shown[0].endswith("overlap.")
    audits = [r for r in records if r["kind"] == "audit" and r["arm"] == "guided"]
    error = np.mean([r["dynamics_error"] / r["persistence_error"] for r in audits])
    assert f"guided: error {error:.3f} of persistence in {len(audits)} audits" in shown[1]
    assert shown[2].startswith("guided: learned for")
    assert [re.sub(r"\..*", "", alt) for alt in re.findall(r'<img alt="([^"]*)"', page)] == [
        "Learning curves", "Synthetic data", "Timeline",
    ]  # fmt: skip


def test_broken_summary_is_explained(tmp_path: Path) -> None:
    run = write_run(tmp_path / "broken", [], None)
    (run / "summary.json").write_text("{")
    with pytest.raises(UserError, match=r"summary\.json is not valid JSON"):
        write_report(run)


def test_score_table_prints_every_policy_in_order() -> None:
    console = Console(width=120, color_system=None, record=True, file=io.StringIO())
    console.print(score_table(realistic_summary()))
    text = console.export_text()
    names = ["behaviour", "real only", "guided", "unguided", "real only alpha 5", "tuned"]
    places = [re.search(rf"^ *{name}  ", text, re.MULTILINE) for name in names]
    assert all(places)
    starts = [match.start() for match in places if match is not None]
    assert starts == sorted(starts)
    assert re.search(r"guided +13\.6 +\[12\.8, 14\.6\] +1,409\.1 +\[1,309\.8, 1,528\.4\] +20", text)
    assert "not run" in text


def test_key_figures_of_a_partial_summary() -> None:
    assert key_figures({}) == []
    figures = dict(key_figures({"updates": 10}))
    assert figures["learner updates"] == "10"
    assert figures["learning overlapped with generation"] == "not measured"
