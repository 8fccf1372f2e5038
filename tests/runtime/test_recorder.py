"""What the recorder writes and what it says aloud."""

from __future__ import annotations

from pathlib import Path

import pytest

from raydiff.config import Config
from raydiff.metrics import MetricsWriter, read_metrics, scalars, select
from raydiff.replay.block import BlockReport
from raydiff.runtime import messages as m
from raydiff.runtime.conductor import Conductor
from raydiff.runtime.crew import Outcome
from raydiff.runtime.recorder import Recorder
from raydiff.runtime.steering import make_controller
from raydiff.types import Agreement, Provenance


def test_a_run_that_lives_on_real_data_alone_says_so_once(tmp_path: Path) -> None:
    conductor = Conductor(Config.model_validate({"replay": {"shortage": "real"}, "learner": {"updates": 5000}}), "a")
    said: list[str] = []
    with MetricsWriter(tmp_path) as writer:
        recorder = Recorder(writer, "guided", said.append)
        for issued, alone in ((900, 900), (1500, 700), (2000, 1100), (2500, 1600)):
            conductor.issued, conductor.real_only = issued, alone
            recorder.outcome(Outcome(m.WorkerUp("evaluator/0"), worker="evaluator/0"), conductor)
            assert len(said) == (issued >= 2000)
        assert recorder.status(conductor).phase == "learning"  # although nothing synthetic has landed
    assert said[0].startswith("guided: 1,100 of 2,000 updates so far are on real data alone")


def steered() -> Conductor:
    config = Config.model_validate(
        {
            "guidance": {"automatic": True, "strength": 2.0},
            "replay": {"warmup": 512, "warmup_guidance": True},
            "audit": {"count": 1},
        }
    )
    return Conductor(config, "a", make_controller(config, action_size=6))


def block(number: int, guidance: str, deviation: float) -> BlockReport:
    origin = Provenance(number, "a", "generator/0", number, 0, 0, "", guidance, 7.0, 1, time={"start": 0.0, "end": 1.0})
    return BlockReport(origin, 512, 1024, Agreement(deviation, -3.0, 1.0))


def test_the_strength_and_how_far_it_brings_actions_are_recorded(tmp_path: Path) -> None:
    """Deviations of twice the target, four times it in the end: the strength rises, and the target is not reached."""
    conductor, said = steered(), []
    with MetricsWriter(tmp_path) as writer:
        recorder = Recorder(writer, "guided", said.append)
        commands = [c for name in ("learner/0", "generator/0") for c in conductor.on(m.WorkerUp(name))]
        (generate,) = commands
        assert isinstance(generate, m.Generate)
        assert generate.strength == 2.0
        for report in (block(generate.block, "score_exact", 0.08), block(99, "none", 0.16)):
            event = m.Produced(generate.call, report)
            conductor.on(event)
            recorder.outcome(Outcome(event, (report,), "generator/0"), conductor)
        status = recorder.status(conductor)
    blocks, strengths = (select(read_metrics(tmp_path), kind, "guided") for kind in ("block", "strength"))
    assert [record["strength"] for record in blocks] == [7.0, 7.0]  # as applied
    assert [record["deviation"] for record in blocks] == [0.08, 0.16]
    assert {(record["log_likelihood"], record["own_log_likelihood"]) for record in blocks} == {(-3.0, 1.0)}
    (state,) = strengths  # the unguided one says nothing of the strength
    assert state["strength"] == status.strength > 2.0
    assert (state["target"], state["measured"], state["measured_at"]) == (pytest.approx(0.04), 0.08, 2.0)
    assert not state["reached"]
    tags = dict(scalars(state))
    assert tags["guided/strength/strength"] == status.strength
    assert dict(scalars(blocks[0]))["guided/block/log_likelihood"] == -3.0


def test_a_given_strength_is_not_recorded_as_automatic(tmp_path: Path) -> None:
    conductor = Conductor(Config(), "a")
    report = block(1, "score_exact", 0.08)
    with MetricsWriter(tmp_path) as writer:
        recorder = Recorder(writer, "guided", print)
        recorder.outcome(Outcome(m.Produced(1, report), (report,), "generator/0"), conductor)
        assert recorder.status(conductor).strength is None
    assert select(read_metrics(tmp_path), "strength") == []


def test_the_end_of_audits_is_said(tmp_path: Path) -> None:
    conductor, said = Conductor(Config.model_validate({"audit": {"count": 2}}), "a"), []
    with MetricsWriter(tmp_path) as writer:
        recorder = Recorder(writer, "guided", said.append)
        for worker in ("auditor/1", "auditor/0"):
            assert conductor.on(m.WorkerGone(worker)) == []
            recorder.outcome(Outcome(m.WorkerGone(worker), worker=worker, facts={"cause": "killed"}), conductor)
    assert [line.endswith("given up") for line in said] == [True, False]
    assert said[1].endswith("given up, the last of its kind: audits stop here")


def test_a_long_chunk_is_said_aloud_ever_more_rarely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, said = [1000.0], []
    monkeypatch.setattr("raydiff.runtime.recorder.time.monotonic", lambda: clock[0])
    conductor = Conductor(Config.model_validate({"generator": {"count": 0}, "learner": {"updates": 5000}}), "a")
    with MetricsWriter(tmp_path) as writer:
        recorder = Recorder(writer, "real_only", said.append)
        train, *_ = [c for c in conductor.on(m.WorkerUp("learner/0")) if isinstance(c, m.Train)]
        for second in range(150):
            clock[0] = 1000.0 + second
            recorder.tick(conductor)
        assert [line.split(" s on")[0] for line in said] == [
            f"real_only: the learner has worked for {seconds}" for seconds in (30, 60, 120)
        ]
        assert said[0].endswith(f"on its next {train.updates:,} updates (0 of 5,000 are done)")
        conductor.on(m.Trained(train.call, train.updates))
        clock[0] += 29
        recorder.tick(conductor)  # the chunk after it is another one
    assert len(said) == 3
