"""Ray itself: started for one run, or joined for its time; and what a running cluster has to give.

A cluster that is joined is not ours: leaving it ends our actors and nothing else. Before anything starts there is a
verdict: the cluster as a whole is too small, others hold what is missing for now, or there is room.
"""

from __future__ import annotations

import ipaddress
import logging
import math
import os
import threading
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from textwrap import shorten

# As in raydiff.runtime.cluster, for whoever imports this file first.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_worker_niceness", "0")

import ray
from ray._private import services
from ray._private import state as ray_state

from raydiff.config import Config
from raydiff.errors import UserError
from raydiff.runtime.address import Address, check_reachable, find_address
from raydiff.runtime.inventory import this_machine
from raydiff.runtime.placement import Cluster, Demand, Node
from raydiff.runtime.refusal import PlacementRefused, check_run

SAY_EVERY_S = 30.0
LOOK_EVERY_S = 1.0
PROBE_S = 6.0
Say = Callable[[str], None]


@contextmanager
def running_ray(config: Config) -> Iterator[Cluster]:
    """Ray for the time of a ``with`` block, as ``cluster.address`` says; yields what it has.

    Raises ``UserError`` for a cluster that cannot be joined.
    """
    address = find_address(config.cluster.address, os.environ)
    if address is None:
        _start(config)
    else:
        _join(address)
    try:
        yield describe_ray(started_here=address is None)
    finally:
        ray.shutdown()


def _start(config: Config) -> None:
    [node] = this_machine(config).nodes
    ray.init(
        address="local",  # never a cluster that happens to be around
        num_cpus=int(node.cpus),
        num_gpus=len(node.gpus),
        object_store_memory=config.cluster.object_store_mb * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    if not ipaddress.ip_address(ray.util.get_node_ip_address()).is_loopback:
        warnings.warn(
            "Ray was imported before raydiff.runtime.join, so its ports are open beyond this machine. Import raydiff "
            "first, or set RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0.",
            stacklevel=2,
        )


def _join(address: Address) -> None:
    check_reachable(address)
    _probe(address)
    try:
        ray.init(
            address=str(address),
            namespace=f"raydiff-{uuid.uuid4().hex}",
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        ray.shutdown()
        raise _not_joined(address, error) from None


def _probe(address: Address) -> None:
    """Find out within seconds what ``ray.init`` would find out after minutes."""
    answer: SimpleQueue[Exception | set[str]] = SimpleQueue()

    def ask() -> None:
        try:
            nodes = ray._raylet.GcsClient(address=str(address)).get_all_node_info(timeout=PROBE_S)
            answer.put({node.hex() for node in nodes})
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told
            answer.put(error)

    threading.Thread(target=ask, daemon=True).start()  # a call that cannot be broken off
    try:
        result = answer.get(timeout=PROBE_S)
    except Empty:
        raise UserError(
            f"What answers at {address} ({address.source}) is no Ray cluster. Use the address that `ray start --head` "
            "printed; the dashboard and the Ray client have ports of their own."
        ) from None
    if isinstance(result, Exception):
        raise _not_joined(address, result) from None
    if not result & set(services.find_node_ids()):
        raise UserError(
            f"This machine is not a node of the Ray cluster at {address}, and raydiff can only be run from one. Run it "
            f"there, add this machine with `ray start --address={address}`, or use `ray job submit`."
        )


def _not_joined(address: Address, error: Exception) -> UserError:
    text = " ".join(str(error).split())
    if isinstance(error, ray.exceptions.AuthenticationError):
        text = "it wants a token, and has not been shown the right one"
        what = "Set RAY_AUTH_MODE=token, and give the cluster's token by RAY_AUTH_TOKEN or in ~/.ray/auth_token."
    elif "ersion mismatch" in text:
        what = "Install the same versions of Ray and Python on every node of the cluster, this one included."
    else:
        what = "Check that `ray status` answers on this machine."
    return UserError(f"The Ray cluster at {address} cannot be joined: {text.rstrip('.')}. {what}")


def describe_ray(started_here: bool = False) -> Cluster:
    """The nodes of the Ray that this process is connected to, with what others hold at the moment.

    Ray tells how much of a node's GPUs is free, not of which: it is taken to be free on as few as possible. This
    machine's node comes first and the others by name: Ray lists them in no fixed order, and placement follows ours.
    """
    here = ray.get_runtime_context().get_node_id()
    free = ray_state.available_resources_per_node()
    alive = [node for node in ray.nodes() if node["Alive"]]
    alive.sort(key=lambda node: (node["NodeID"] != here, node["NodeName"], node["NodeID"]))
    names = Counter(node["NodeName"] for node in alive)
    nodes = []
    for node in alive:
        key, total = node["NodeID"], node["Resources"]
        left = free.get(key, total)
        name = node["NodeName"] if names[node["NodeName"]] == 1 else f"{node['NodeName']} ({key[:6]})"
        nodes.append(
            Node(
                name,
                total.get("CPU", 0.0),
                _shares(int(total.get("GPU", 0)), left.get("GPU", 0.0)),
                total.get("object_store_memory", 0.0) / 2**20,
                round(total.get("CPU", 0.0) - left.get("CPU", 0.0), 4),
                key,
            )
        )
    driver = next((node.name for node in nodes if node.id == here), nodes[0].name)
    return Cluster(tuple(nodes), driver, started_here)


def _shares(count: int, free: float) -> tuple[float, ...]:
    whole = min(count, math.floor(free + 1e-9))
    rest = [round(free - whole, 4)] if whole < count else []
    return tuple([1.0] * whole + rest + [0.0] * (count - whole - len(rest)))


def await_room(config: Config, say: Say) -> Cluster:
    """The cluster, once the run fits into what others have left of it, with its arms.

    Raises ``UserError`` at once where it is too small as a whole (unless ``cluster.wait=autoscale``), and after
    ``cluster.timeout_s`` where the room does not come.
    """
    settings = config.cluster
    begun, said = time.monotonic(), -math.inf
    asked = False
    try:
        while True:
            cluster = describe_ray()
            refused, busy = _verdict(config, cluster)
            if refused is None:
                return cluster
            if not busy and settings.wait == "refuse":
                raise refused
            if not busy and not asked:
                asked = _ask_autoscaler(refused.rows)
            what = f"The cluster is busy ({_other_jobs()})" if busy else "The cluster is too small as yet"
            waited = time.monotonic() - begun
            if waited >= settings.timeout_s:
                limit = f"Waited {settings.timeout_s:g} s (cluster.timeout_s)."
                raise UserError(f"{what}: {refused} {limit}")
            if waited - said >= SAY_EVERY_S:
                said = waited
                say(f"{what}: {_sentence(refused)}. Waiting up to {settings.timeout_s:g} s (cluster.timeout_s).")
            time.sleep(min(LOOK_EVERY_S, settings.timeout_s))
    finally:
        if asked:
            _ask_autoscaler([])


def _verdict(config: Config, cluster: Cluster) -> tuple[PlacementRefused | None, bool]:
    """The first refusal, and whether it is only because others hold something."""
    for busy, view in ((False, cluster.idle()), (True, cluster)):
        try:
            check_run(config, view)
        except PlacementRefused as error:
            return error, busy
    return None, False


def _sentence(refused: PlacementRefused) -> str:
    return str(refused).partition(". ")[0].partition(": ")[2]


def _other_jobs() -> str:
    """Who else is at work, as far as Ray tells."""
    mine = ray.get_runtime_context().get_job_id()
    jobs = [job for job in ray_state.jobs() if not job["IsDead"] and job["JobID"] != mine]
    named = [f"job {job['JobID']}: {shorten(job.get('Entrypoint') or 'unnamed', 60)}" for job in jobs]
    return "; ".join(named[:3]) if named else "held by actors that outlived their job"


def _ask_autoscaler(rows: list[Demand]) -> bool:
    """Ask for room for the workers (an empty list takes it back); where nothing scales, nothing happens."""
    from ray.autoscaler.sdk import request_resources

    shapes = [{"CPU": row.cpus, "GPU": row.gpus} for row in rows for _ in range(row.count)]
    bundles = [{name: amount for name, amount in shape.items() if amount} for shape in shapes]
    with suppress(ray.exceptions.RayError):
        request_resources(bundles=[bundle for bundle in bundles if bundle])
    return True
