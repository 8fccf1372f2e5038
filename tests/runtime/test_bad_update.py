"""An update that goes wrong in a learner of Ray's: it travels to the run folder, whatever machine the learner is on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from raydiff.roles.repeat_update import repeat

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo.yaml"
pytest.importorskip("raydiff.runtime.cluster")  # which sets up the environment that Ray reads when it is imported


@pytest.mark.ray
@pytest.mark.timeout(200)
def test_the_update_lies_in_the_run_folder_and_can_be_repeated(tmp_path: Path) -> None:
    settings = [
        "scale=tiny", "arms={}", "data.environment=Pendulum-v1", "data.transitions=600", "generator.count=0",
        "refiner.count=0", "audit.count=0", "learner.updates=100", "learner.hidden=[16,16]", "learner.batch_size=16",
        "learner.learning_rate=1e18", f"data.cache={tmp_path}", f"output={tmp_path}", "name=x",
    ]  # fmt: skip
    command = [sys.executable, "-m", "raydiff.cli", "train", str(DEMO), *settings]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    (path,) = (tmp_path / "x" / "bad_states").iterdir()
    assert done.returncode == 1
    assert f"--replay-batch {path} repeats that update" in done.stderr
    assert "Traceback" not in done.stderr  # nor Ray's, of results that nobody asked for
    assert "Unhandled" not in done.stderr + done.stdout
    assert repeat(path).exact
