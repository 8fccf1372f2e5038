"""Two Ray nodes on this machine, on loopback: joining them, placing actors where the plan says, and losing one."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from raydiff.config import Config
from raydiff.errors import UserError
from raydiff.metrics import read_metrics, select
from raydiff.presets import load_config
from raydiff.runtime.placement import Placement
from raydiff.runtime.refusal import PlacementRefused, place
from raydiff.runtime.venue import venue

join = pytest.importorskip("raydiff.runtime.join")
ray = join.ray
pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

ROOT = Path(__file__).resolve().parents[2]
SWITCHES = ("arms.unguided=null", "arms.real_only=null", "arms.real_only_alpha_10=null")


def local_cluster() -> ModuleType:
    spec = importlib.util.spec_from_file_location("local_cluster", ROOT / "launch" / "local_cluster.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What ``launch/local.sh`` knows of two nodes with two CPUs each; nothing of them is left at the end."""
    from ray._private.authentication_test_utils import reset_auth_token_state

    local, folder = local_cluster(), Path(tempfile.mkdtemp(prefix="rd", dir="/tmp"))  # sockets need a short path
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
            patch.delenv(name, raising=False)
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_TMPDIR", str(home))  # where the address is noted
        facts = local.start(folder, nodes=2, cpus=2, store_mb=200)
        family = [psutil.Process(facts["pid"]), *psutil.Process(facts["pid"]).children(recursive=True)]
        reset_auth_token_state()  # this process may know the token of an earlier test
        try:
            yield facts
        finally:
            family += psutil.Process(facts["pid"]).children(recursive=True)
            assert local.stop(folder)
    reset_auth_token_state()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive, [process.cmdline() for process in alive]
    assert not (home / "ray" / "ray_current_cluster").exists()
    shutil.rmtree(folder)


def config(*overrides: str) -> Config:
    return load_config(ROOT / "configs" / "demo.yaml", ["scale=tiny", "cluster.address=auto", *SWITCHES, *overrides])


def test_the_nodes_listen_on_loopback_only(nodes: dict[str, Any]) -> None:
    found = set()
    for process in [psutil.Process(nodes["pid"]), *psutil.Process(nodes["pid"]).children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            connections = process.net_connections("inet")
            found |= {c.laddr.ip.removeprefix("::ffff:") for c in connections if c.status == psutil.CONN_LISTEN}
    assert found == {"127.0.0.1"}


def test_joining_leaves_the_cluster_alone_and_sees_its_nodes(nodes: dict[str, Any]) -> None:
    with venue("ray", config(), print) as cluster:
        assert cluster is not None
        assert [(node.name, node.cpus, node.busy_cpus) for node in cluster.nodes] == [("head", 2, 0), ("second", 2, 0)]
        assert cluster.driver == "head"
        assert ray.get_runtime_context().namespace.startswith("raydiff-")
    assert not ray.is_initialized()
    assert psutil.pid_exists(nodes["pid"])
    with venue("ray", config(f"cluster.address={nodes['address']}"), print) as again:
        assert again == cluster


@pytest.mark.usefixtures("nodes")
def test_what_never_fits_is_refused_at_once() -> None:
    begun = time.monotonic()
    with pytest.raises(PlacementRefused, match=r"generator 1/2 needs 64 CPU; node \w+ has"), venue(
        "ray", config("generator.cpus=64"), print
    ):  # fmt: skip
        pass
    assert time.monotonic() - begun < 10
    assert not ray.is_initialized()


@pytest.mark.usefixtures("nodes")
def test_a_cluster_that_may_grow_is_waited_for() -> None:
    said: list[str] = []
    patient = config("generator.cpus=64", "cluster.wait=autoscale", "cluster.timeout_s=2")
    with pytest.raises(UserError, match=r"too small as yet.*Waited 2 s \(cluster.timeout_s\)"), venue(
        "ray", patient, said.append
    ):  # fmt: skip
        pass
    assert len(said) == 1
    assert "generator 1/2 needs 64 CPU" in said[0]
    assert "Waiting up to 2 s" in said[0]


HOLDER = """
import sys, time, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
@ray.remote(num_cpus=2)
class Holder:
    def hold(self): return 1
holders = [Holder.remote() for _ in range(2)]
ray.get([holder.hold.remote() for holder in holders])
print("held", flush=True)
sys.stdin.read()
"""


def test_what_others_hold_is_waited_for_and_named(nodes: dict[str, Any]) -> None:
    command = [sys.executable, "-c", HOLDER, nodes["address"]]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "held\n"
        said: list[str] = []
        with pytest.raises(UserError) as error, venue("ray", config("cluster.timeout_s=1"), said.append):
            pass
        for text in (str(error.value), said[0]):
            assert "The cluster is busy (job " in text
            assert "pretrainer needs 1 CPU; node head has 0 of 2 CPU left (2 held by other jobs)" in text
        assert "Waited 1 s" in str(error.value)
        threading.Timer(1.0, other.stdin.close).start()
        with venue("ray", config("cluster.timeout_s=60"), said.append) as cluster:
            assert cluster is not None
            assert isinstance(place(config(), cluster), Placement)


@pytest.mark.usefixtures("nodes")
def test_a_machine_that_is_no_node_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(join.services, "find_node_ids", set)
    with pytest.raises(UserError, match=r"not a node of the Ray cluster.*ray job submit"), join.running_ray(config()):
        pass


class Run:
    """``raydiff train`` on the two nodes, in a process of its own."""

    def __init__(self, cache: Path, output: Path, *overrides: str) -> None:
        self.folder = output / "demo"
        command = [sys.executable, "-m", "raydiff.cli", "train", "configs/demo.yaml", "scale=tiny", *SWITCHES]
        command += ["--address", "auto", "generator.count=3", f"output={output}", f"data.cache={cache}"]
        command += ["denoiser.steps=60", "reward.steps=60", *overrides]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def events(self, name: str) -> list[dict[str, Any]]:
        return [record for record in self.records("event") if record["event"] == name]

    def records(self, kind: str) -> list[dict[str, Any]]:
        metrics = self.folder / "metrics.jsonl"
        return select(read_metrics(metrics), kind) if metrics.is_file() else []

    def until(self, what: str, done: Callable[[], Any], limit_s: float = 90.0) -> None:
        deadline = time.monotonic() + limit_s
        while not done():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                pytest.fail(f"{what} never came: {self.process.communicate()[0]}")
            time.sleep(0.3)


def actors(nodes: dict[str, Any]) -> list[psutil.Process]:
    """The processes of Ray actors and tasks below the nodes, without Ray's own agents."""
    names = [(p, p.info["name"]) for p in psutil.process_iter(["name"]) if p.info["name"].startswith("ray::")]
    family = {process.pid for process in psutil.Process(nodes["pid"]).children(recursive=True)}
    return [p for p, name in names if p.pid in family and "Agent" not in name and "IDLE" not in name]


@pytest.mark.usefixtures("dataset", "models")
def test_a_run_uses_both_nodes_and_survives_the_end_of_one(nodes: dict[str, Any], cache: Path, tmp_path: Path) -> None:
    flowing = ("replay.samples_per_insert=2", "replay.ahead=1", "learner.chunk=10", "refiner.min_lag=5")
    run = Run(cache, tmp_path, "learner.updates=100000", "evaluation.every=50", *flowing)
    run.until("every worker", lambda: len(run.events("worker_up")) == 7)
    planned = {slot.worker: slot.node for slot in _planned(run.folder)}
    assert {event["worker"]: event["time"]["node"] for event in run.events("worker_up")} == planned
    away = {worker for worker, node in planned.items() if node == "second"}
    assert {"generator/0", "generator/2"} <= away
    assert planned["generator/1"] == planned["learner/0"] == "head"
    run.until("updates", lambda: run.records("train"))
    # Blocks pile up before the learner, and go with their node before it has read them.
    learner = psutil.Process(run.events("worker_up")[0]["time"]["pid"])
    learner.suspend()
    time.sleep(4)
    _raylet(nodes, "second").kill()
    learner.resume()
    run.until("new workers", lambda: {e["worker"] for e in run.events("worker_up")[7:]} >= away, limit_s=60)
    again = {event["worker"]: event["time"]["node"] for event in run.events("worker_up")}
    assert set(again.values()) == {"head"}
    assert not run.events("quarantine")
    made = len(run.records("block"))
    run.until("blocks", lambda: {r["generator"] for r in run.records("block")[made:]} >= {"generator/0", "generator/2"})
    run.until("lost blocks", lambda: run.events("block_lost"))
    updates = run.records("train")[-1]["update"]
    run.until("more updates", lambda: run.records("train")[-1]["update"] > updates + 20)
    run.process.send_signal(signal.SIGINT)
    output = run.process.communicate(timeout=30)[0]
    assert run.process.returncode == 130, output
    assert psutil.pid_exists(nodes["pid"])
    deadline = time.monotonic() + 20
    while left := actors(nodes):
        assert time.monotonic() < deadline, [process.name() for process in left]
        time.sleep(0.2)


def _planned(folder: Path) -> Any:
    import yaml

    from raydiff.presets import validate
    from raydiff.runtime.placement import Cluster, Node

    resolved = validate(yaml.safe_load((folder / "config.yaml").read_text()), "the run")
    return place(resolved, Cluster((Node("head", 2.0), Node("second", 2.0)), "head")).slots


def _raylet(nodes: dict[str, Any], name: str) -> psutil.Process:
    """The process that is the node."""
    children = psutil.Process(nodes["pid"]).children()
    return next(p for p in children if p.name() == "raylet" and any(name in word for word in p.cmdline()))
