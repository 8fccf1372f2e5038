"""``raydiff train`` on Ray as a user runs it: in a process of its own, to its end and to Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from raydiff.data.dataset import Dataset
from raydiff.metrics import read_metrics, select
from raydiff.roles.models import Models

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo.yaml"
pytest.importorskip("raydiff.runtime.cluster")
pytestmark = [pytest.mark.ray, pytest.mark.timeout(280)]


def start(cache: Path, output: Path, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "raydiff.cli", "train", str(DEMO), "scale=tiny", f"output={output}"]
    command += [f"data.cache={cache}", "denoiser.steps=60", "reward.steps=60", *overrides]
    environment = {**os.environ, "HOME": str(output), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
        # Tests may run as a shell's background job, whose children ignore Ctrl-C unless told otherwise.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The process and all below it; Ray's daemons included."""
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


def assert_all_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=20)
    alive = [process for process in alive if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert not alive, [process.cmdline() for process in alive]


@pytest.fixture
def ready(dataset: Dataset, models: Models) -> None:
    """Data and models lie in the cache."""


@pytest.mark.usefixtures("ready")
def test_train_to_the_end(cache: Path, tmp_path: Path):
    process = start(cache, tmp_path, "arms.unguided=null")
    seen: dict[int, psutil.Process] = {}
    while process.poll() is None:
        seen |= {member.pid: member for member in family(process) if member.is_running()}
        time.sleep(0.3)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 0, out + err
    assert "Traceback" not in out + err
    folder = tmp_path / "demo"
    assert out.rstrip().splitlines()[-1] == str(folder)
    summary = json.loads((folder / "summary.json").read_text())
    for arm in ("behaviour", "real_only", "guided", "real_only_alpha_10"):
        for unit in ("normalized", "raw"):
            score = summary["scores"][arm][unit]
            assert score["low"] <= score["mean"] <= score["high"]
            assert score["episodes"] > 0
    assert summary["updates"] == 300
    assert summary["trajectories_generated"] > 0
    assert 0 <= summary["overlap_fraction"] <= 1
    assert (folder / "report" / "index.html").is_file()
    assert len(seen) > 5  # driver, Ray's own and the actors
    assert_all_gone(list(seen.values()))
    assert [r["final"] for r in select(read_metrics(folder), "evaluate", "guided")].count(True) == 1


@pytest.mark.usefixtures("ready")
def test_ctrl_c_leaves_no_process(cache: Path, tmp_path: Path):
    process = start(cache, tmp_path, "learner.updates=100000", "arms.real_only=null", "arms.real_only_alpha_10=null")
    metrics = tmp_path / "demo" / "metrics.jsonl"
    deadline = time.monotonic() + 90
    while not (metrics.is_file() and select(read_metrics(metrics), "train", "guided")):
        assert time.monotonic() < deadline, "the run never began to learn"
        assert process.poll() is None, process.communicate()
        time.sleep(0.3)
    members = family(process)
    assert len(members) > 5
    os.kill(process.pid, signal.SIGINT)
    try:
        out, err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        for member in members:  # a failing test, too, leaves nothing behind
            member.kill()
        raise
    assert process.returncode == 130, out + err
    assert "Ctrl-C" in err
    assert "Traceback" not in out + err
    assert_all_gone(members)
