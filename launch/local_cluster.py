"""A Ray cluster of several nodes on this machine, on loopback only: what ``launch/local.sh`` runs.

``ray start`` refuses a second node on 127.0.0.1 and opens its ports to the network on any other address, so the nodes
are started through Ray's own ``cluster_utils``. One background process holds them; it and its process id live in a
folder of its own, and ``stop`` ends exactly what it started, never anybody else's Ray.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

START_LIMIT_S = 90.0
STOP_LIMIT_S = 15.0
NODE_NAMES = ("head", "second", "third", "fourth")


def default_folder() -> Path:
    """Short, because the paths of Ray's sockets may have 107 characters at the most."""
    return Path(os.environ.get("RAYDIFF_LOCAL", Path(tempfile.gettempdir()) / f"raydiff-local-{os.getuid()}"))


def start(folder: Path, nodes: int, cpus: int, store_mb: int, wait_s: float = START_LIMIT_S) -> dict[str, Any]:
    """Start the nodes in the background and return what ``status`` knows of them. ``RuntimeError`` where that fails."""
    if running(folder) is not None:
        raise RuntimeError(f"a cluster of {folder} is running already; `stop` it first")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    state = folder / "state.json"
    state.unlink(missing_ok=True)
    _token()
    arguments = ["serve", "--nodes", str(nodes), "--cpus-per-node", str(cpus), "--object-store-mb", str(store_mb)]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), "--folder", str(folder), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **environment(folder)},
        )
    deadline = time.monotonic() + wait_s
    while not state.is_file():
        if process.poll() is not None or time.monotonic() > deadline:
            end([psutil.Process(process.pid)] if process.poll() is None else [])
            tail = (folder / "log").read_text(errors="replace").strip().splitlines()[-5:]
            raise RuntimeError("Ray did not start: " + " ".join(tail))
        time.sleep(0.1)
    facts = json.loads(state.read_text())
    facts["pointer"] = _point_to(facts["address"])
    _write(folder, facts)
    return facts


def environment(folder: Path) -> dict[str, str]:
    """Variables that keep a node's ports on loopback and its files in ``folder``."""
    return {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray then binds to 127.0.0.1
        "RAY_worker_niceness": "0",  # raydiff's actors choose their own
        "RAY_TMPDIR": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "AUTOSCALER_METRIC_PORT": str(_free_port()),
        "DASHBOARD_METRIC_PORT": str(_free_port()),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _token() -> None:
    """The token that Ray's processes show each other, in Ray's own place, readable by this user alone."""
    path = Path.home() / ".ray" / "auth_token"
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ or path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))


def serve(folder: Path, nodes: int, cpus: int, store_mb: int) -> None:
    """Hold the nodes until SIGTERM. Runs in the background process."""
    from ray.cluster_utils import Cluster

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    dashboard = _dashboard()
    cluster = Cluster(shutdown_at_exit=True)
    for name in NODE_NAMES[:nodes]:
        head = {"gcs_server_port": 0, **dashboard} if name == "head" else {}
        cluster.add_node(
            node_name=name,
            num_cpus=cpus,
            num_gpus=0,
            object_store_memory=store_mb * 2**20,
            temp_dir=str(folder / "ray"),
            dashboard_agent_listen_port=_free_port(),
            **head,
        )
    url = cluster.webui_url if dashboard["include_dashboard"] else None
    names = list(NODE_NAMES[:nodes])
    facts = {
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
        "address": cluster.address,
        "dashboard": url and f"http://{url}",
        "nodes": names,
        "cpus_per_node": cpus,
        "pointer": None,
    }
    _write(folder, facts)
    while True:
        time.sleep(3600)


def _write(folder: Path, facts: dict[str, Any]) -> None:
    partial = folder / ".state.json"
    partial.write_text(json.dumps(facts, indent=1))
    os.replace(partial, folder / "state.json")


def _dashboard() -> dict[str, Any]:
    """Ray's dashboard takes submitted jobs; it comes with ray[default]."""
    try:
        import aiohttp_cors  # noqa: F401
    except ImportError:
        return {"include_dashboard": False}
    return {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": _free_port()}


def _pointer() -> Path:
    """Where ``ray start`` notes its address and ``--address auto`` looks for one."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp") / "ray" / "ray_current_cluster"


def _point_to(address: str) -> str | None:
    """Let ``--address auto`` find this cluster, unless it finds another one that runs."""
    path = _pointer()
    try:
        if path.is_file() and _answers(path.read_text().strip()):
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(address)
    except OSError:  # it belongs to another user
        return None
    return str(path)


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=1.0):
            return True
    except (OSError, ValueError):
        return False


def running(folder: Path) -> dict[str, Any] | None:
    """What is known of the cluster of ``folder``, or None where none runs."""
    try:
        facts = json.loads((folder / "state.json").read_text())
        process = psutil.Process(facts["pid"])
    except (OSError, ValueError, psutil.NoSuchProcess):
        return None
    return facts if process.create_time() == facts["started"] else None  # process ids come again


def stop(folder: Path) -> bool:
    """End the cluster of ``folder`` with every process below it; false where none runs."""
    facts = running(folder)
    if facts is None:
        return False
    end([psutil.Process(facts["pid"])])
    if facts["pointer"] is not None:
        path = Path(facts["pointer"])
        if path.is_file() and path.read_text().strip() == facts["address"]:
            path.unlink()
    (folder / "state.json").unlink(missing_ok=True)
    return True


def end(parents: list[psutil.Process]) -> None:
    """SIGTERM to the parents, who end their nodes; then SIGKILL to whatever of theirs is left."""
    family = [member for parent in parents for member in (parent, *parent.children(recursive=True))]
    for parent in parents:
        parent.terminate()
    _, alive = psutil.wait_procs(family, timeout=STOP_LIMIT_S)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=5)


def exports(facts: dict[str, Any]) -> str:
    """Shell lines after which ``--address auto`` and ``ray job submit`` mean this cluster, whatever else runs."""
    lines = [f"export RAY_ADDRESS={facts['address']}", "export RAY_AUTH_MODE=token"]
    if facts["dashboard"]:
        lines.append(f"export RAY_API_SERVER_ADDRESS={facts['dashboard']}")
    return "\n".join(lines)


def _describe(facts: dict[str, Any]) -> str:
    size = f"{len(facts['nodes'])} nodes ({', '.join(facts['nodes'])}) of {facts['cpus_per_node']} CPUs"
    found = "--address auto finds it" if facts["pointer"] else "for --address auto, first run the lines of `env`"
    jobs = facts["dashboard"] or "none: jobs can be submitted with the extra raydiff[cluster]"
    return f"{size} at {facts['address']}; {found}\ndashboard: {jobs}\n{exports(facts)}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="launch/local.sh", description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=default_folder(), help="where its files and process id live")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("start", "start the nodes in the background"), ("serve", "hold the nodes in the foreground")):
        command = commands.add_parser(name, help=text)
        command.add_argument("--nodes", type=int, default=2, choices=range(1, len(NODE_NAMES) + 1))
        command.add_argument("--cpus-per-node", type=int, default=2, help="logical CPUs of each node")
        command.add_argument("--object-store-mb", type=int, default=512, help="object store of each node")
    commands.add_parser("stop", help="end exactly what start has started")
    commands.add_parser("status", help="say what runs")
    commands.add_parser("env", help='shell lines for eval "$(launch/local.sh env)"')
    options = parser.parse_args()
    if options.command == "serve":
        serve(options.folder, options.nodes, options.cpus_per_node, options.object_store_mb)
    if options.command == "start":
        try:
            print(_describe(start(options.folder, options.nodes, options.cpus_per_node, options.object_store_mb)))
        except RuntimeError as error:
            print(f"launch/local.sh: {error}", file=sys.stderr)
            return 1
        return 0
    if options.command == "stop":
        print("stopped" if stop(options.folder) else "nothing to stop")
        return 0
    facts = running(options.folder)
    if facts is None:
        print("launch/local.sh: no cluster runs here; `start` one", file=sys.stderr)
        return 1
    print(exports(facts) if options.command == "env" else _describe(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
