"""What the recorder says aloud."""

from __future__ import annotations

from pathlib import Path

from raydiff.config import Config
from raydiff.metrics import MetricsWriter
from raydiff.runtime import messages as m
from raydiff.runtime.conductor import Conductor
from raydiff.runtime.crew import Outcome
from raydiff.runtime.recorder import Recorder


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
