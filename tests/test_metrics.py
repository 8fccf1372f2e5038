from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from raydiff.errors import UserError
from raydiff.metrics import MetricsWriter, read_metrics, scalars, select, without_time

TRAIN = {
    "kind": "train",
    "arm": "guided",
    "update": 50,
    "updates": 50,
    "losses": {"critic_loss": 1.5, "actor_loss": -0.25},
    "lag": {"mean": 12.5, "max": 50},
    "synthetic_sampled": 6400,
    "synthetic_inserted": 200,
    "time": {"worker": "learner", "start": 100.0, "end": 101.0, "waited": 0.0},
}


def tensorboard(folder: Path) -> dict[tuple[str, int], float]:
    """The scalars of an event file: framed protocol buffers, length (8 bytes), its checksum (4), data, checksum (4)."""
    found: dict[tuple[str, int], float] = {}
    for path in (folder / "tensorboard").iterdir():
        data, place = path.read_bytes(), 0
        while place < len(data):
            size = int.from_bytes(data[place : place + 8], "little")
            event = Event.FromString(data[place + 12 : place + 12 + size])
            found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
            place += 12 + size + 4
    return found


def test_records_come_back_as_written(tmp_path: Path) -> None:
    records = [TRAIN, {"kind": "event", "arm": "guided", "event": "wait", "worker": None, "detail": "ä", "time": {}}]
    with MetricsWriter(tmp_path) as writer:
        for record in records:
            writer.write(record)
        assert read_metrics(tmp_path) == records  # flushed at once, readable while the run goes on
    assert read_metrics(tmp_path / "metrics.jsonl") == records
    first = (tmp_path / "metrics.jsonl").read_text().splitlines()[0]
    assert list(json.loads(first)) == sorted(TRAIN)


def test_numpy_and_non_finite_numbers(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as writer:
        writer.write(
            {
                "kind": "evaluate",
                "arm": "guided",
                "update": np.int64(7),
                "final": np.bool_(True),
                "returns": np.array([1.0, np.nan]),
                "raw": {"mean": np.float32(0.5), "low": math.inf, "high": float("nan")},
            }
        )
    (record,) = read_metrics(tmp_path)
    assert record["update"] == 7
    assert record["final"] is True
    assert record["returns"] == [1.0, None]
    assert record["raw"] == {"mean": 0.5, "low": None, "high": None}


def test_scalars_go_to_tensorboard(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as writer:
        writer.write(TRAIN)
        writer.write({"kind": "pretrain", "step": 10, "steps": 100, "loss": 0.75, "holdout_loss": None})
    found = tensorboard(tmp_path)
    assert found["guided/train/critic_loss", 50] == 1.5
    assert found["guided/train/actor_loss", 50] == -0.25
    assert found["guided/train/lag_mean", 50] == 12.5
    assert found["guided/train/synthetic_sampled", 50] == 6400
    assert found["pretrain/loss", 10] == 0.75
    assert not any("time" in tag or "holdout" in tag for tag, _ in found)


def test_scalars_leave_out_names_flags_and_steps() -> None:
    record = {"kind": "audit", "arm": "a", "update": 3, "block": 9, "refreshed": True, "reward_error": 0.5, "x": "y"}
    assert dict(scalars(record)) == {"a/audit/reward_error": 0.5}


def test_cut_last_line_is_left_out_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"kind": "train", "update": 1}\n{"kind": "tra\xc3')
    with caplog.at_level(logging.WARNING):
        assert read_metrics(path) == [{"kind": "train", "update": 1}]
    assert "line (2) was cut" in caplog.text


def test_writer_continues_after_a_cut_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train", "update": 1}\n{"kind": "tra')
    with caplog.at_level(logging.WARNING), MetricsWriter(tmp_path) as writer:
        writer.write({"kind": "train", "update": 2})
    assert [record["update"] for record in read_metrics(path)] == [1, 2]
    assert "removed" in caplog.text


def test_writer_keeps_a_whole_line_without_its_newline(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train", "update": 1}')
    with MetricsWriter(tmp_path) as writer:
        writer.write({"kind": "train", "update": 2})
    assert [record["update"] for record in read_metrics(path)] == [1, 2]


def test_broken_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train"}\nnonsense\n{"kind": "train"}\n')
    with pytest.raises(UserError, match="line 2"):
        read_metrics(path)
    with pytest.raises(UserError, match="no metrics file"):
        read_metrics(tmp_path / "elsewhere")


def test_without_time_and_select() -> None:
    plain = without_time(TRAIN)
    assert "time" not in plain
    assert {**plain, "time": TRAIN["time"]} == TRAIN
    records = [TRAIN, {**TRAIN, "arm": "real_only"}, {"kind": "block", "arm": "guided"}]
    assert select(records, "train") == records[:2]
    assert select(records, "train", "real_only") == [records[1]]
