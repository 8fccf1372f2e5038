"""What every use of a Ray actor needs: its options, whether a node lives, and errors that a person can read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import Any

# As in raydiff.runtime.cluster, for whoever imports this file first.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_worker_niceness", "0")

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raydiff.errors import RunFailed, UserError
from raydiff.roles.bad_states import BadUpdate
from raydiff.runtime.placement import Cluster, Slot


def node_alive(node_id: str) -> bool:
    return any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes())


def actor_options(cpus: float, gpus: float, slot: Slot | None, cluster: Cluster | None) -> dict[str, Any]:
    """Resources of an actor, and the node of its slot for as long as that node lives."""
    options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": 0}
    if slot is None or cluster is None:
        return options
    node = cluster.node(slot.node).id
    # Ray takes a soft wish for no more than a hint where an actor asks for nothing; a hard one needs a living node.
    soft = cpus > 0 or gpus > 0
    if soft or node_alive(node):
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=soft)
    return options


def with_options(actor: Any, options: dict[str, Any]) -> Any:
    """An actor class with resources; Ray adds ``options`` to it, which type checkers cannot know."""
    return actor.options(**options)


def pass_over(results: Iterable[Any]) -> None:
    """Look at errors among results that nobody will ask for. A call's error comes with each of its results, and Ray
    prints a traceback for those that are let go unseen, though the error is reported once already."""
    for result in results:
        with contextlib.suppress(ray.exceptions.RayError):  # that includes results which are not there yet
            ray.get(result, timeout=0)


def failure(what: str, error: Exception) -> Exception:
    """A remote error as one of ours: what the user can mend, and what can be repeated, stay that."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, UserError | BadUpdate) else RunFailed(f"{what}: {first_cause(error)}")


def first_cause(error: Exception) -> str:
    """The innermost message of a Ray error in one line, without the remote stack."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, Exception):
        return f"{type(cause).__name__}: {cause}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    if "creation task" in lines[0]:  # an exception while the actor was built: Ray quotes it at the end
        return lines[-1]
    return f"{type(error).__name__}: {lines[0]}"
