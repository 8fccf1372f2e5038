"""Placements that cannot be had, explained: which worker, which resource, what each node has left, and what to change.

Every change that is proposed has been tried: with it alone, everything fits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from raydiff.config import Config
from raydiff.errors import UserError
from raydiff.presets import arms_of, together
from raydiff.runtime.placement import (
    RESOLUTION,
    Cluster,
    Demand,
    Node,
    Placement,
    Shortage,
    Slot,
    attempt,
    attempt_pretrainer,
    attempt_together,
    demands,
    pretrainer_demand,
    units,
)
from raydiff.runtime.plan import check_devices

MOST_NODES = 4
MOST_CHANGES = 2
LEAST = {"generator": 1, "evaluation": 1, "refiner": 0, "audit": 0}
NEW_NODE = "a new node"
Fits = Callable[[Config, Cluster], bool]


class PlacementRefused(UserError):
    """No room. Each of ``changes`` (``generator.count=4``) makes the placement fit by itself, and so does ``node`` as
    one more node; ``rows`` are the workers that wanted room."""

    def __init__(self, text: str, changes: tuple[str, ...], node: Node | None, rows: list[Demand]) -> None:
        super().__init__(text)
        self.changes, self.node, self.rows = changes, node, rows


def place(config: Config, cluster: Cluster) -> Placement:
    """The place of every worker of one learner. Raises ``PlacementRefused`` where there is none."""
    check_devices(config)
    result = attempt(config, cluster)
    if isinstance(result, Placement):
        return result
    raise _refuse(config, cluster, result, demands(config), _roles_fit)


def place_together(config: Config, cluster: Cluster) -> Placement:
    """The place of every worker of the learners that run at the same time (``presets.together``), whose slots name
    their arms. Raises ``PlacementRefused`` where there is none."""
    arms = together(config)
    for arm in arms.values():
        check_devices(arm)
    result = attempt_together(arms, cluster)
    if isinstance(result, Placement):
        return result
    if len(arms) == 1:
        return place(config, cluster)  # refuses in the words for one learner
    rows = [row for name, arm in arms.items() for row in demands(arm, name)]
    raise _refuse(config, cluster, result, rows, _together_fit)


def place_pretrainer(config: Config, cluster: Cluster) -> Slot | None:
    """The pretrainer's place, or None where no model is needed. Raises ``PlacementRefused``."""
    if not config.generator.count:
        return None
    result = attempt_pretrainer(config, cluster)
    if isinstance(result, Slot):
        return result
    raise _refuse(config, cluster, result, [pretrainer_demand(config)], _pretrainer_fits)


def check_placement(config: Config, cluster: Cluster) -> None:
    """Refuse what the cluster cannot hold: the roles of one learner, and before them the pretrainer."""
    place_pretrainer(config, cluster)
    place(config, cluster)


def check_run(config: Config, cluster: Cluster) -> Placement:
    """Refuse what the cluster cannot hold of a whole run: those that are there at once together, each of the other arms
    by itself, and before them the pretrainer. Returns the placement of the first."""
    at_once = together(config)
    for arm in at_once.values():
        place_pretrainer(arm, cluster)
    placement = place_together(config, cluster)
    for name, arm in arms_of(config).items():
        if name not in at_once:
            check_placement(arm, cluster)
    return placement


def _roles_fit(config: Config, cluster: Cluster) -> bool:
    return isinstance(attempt(config, cluster), Placement)


def _together_fit(config: Config, cluster: Cluster) -> bool:
    return isinstance(attempt_together(together(config), cluster), Placement)


def _apart_fit(config: Config, cluster: Cluster) -> bool:
    return all(_roles_fit(arm, cluster) for arm in together(config).values())


def _pretrainer_fits(config: Config, cluster: Cluster) -> bool:
    return isinstance(attempt_pretrainer(config, cluster), Slot)


def _refuse(config: Config, cluster: Cluster, shortage: Shortage, rows: list[Demand], fits: Fits) -> PlacementRefused:
    changes = _changes(config, cluster, shortage, rows, fits)
    node = None if cluster.started_here else _new_node(config, cluster, rows, fits)
    advice = [f"{key} to {value}" for key, _, value in (change.partition("=") for change in changes)]
    ways = [f"lower {' or '.join(advice)}"] if advice else []
    if cluster.started_here and (logical := _logical_cpus(config, cluster, rows, fits)) is not None:
        changes = (*changes, f"cluster.cpus={logical}")
        ways.append(f"let Ray count {logical} CPUs here with cluster.cpus={logical}")
    if node is not None:
        ways.append(f"add a node with {_amounts(node.cpus, len(node.gpus))}")
    if shortage.demand.arm and _apart_fit(config, cluster):
        changes = (*changes, "arms_together=false")
        ways.append("run them one after the other with arms_together=false")
    what = ", or ".join(ways) if ways else "lower what several roles ask for, or use a larger machine"
    text = f"{_explain(shortage, rows)}. {_needs(rows)}{what[0].upper()}{what[1:]}."
    return PlacementRefused(text, changes, node, rows)


def _explain(shortage: Shortage, rows: list[Demand]) -> str:
    """``generator 5/5 needs 0.4 GPU; node a: GPU 0 has 0.2, GPU 1 has 0.2 left``."""
    demand, room = shortage.demand, shortage.left
    nodes = sorted(room.cluster.nodes, key=lambda node: -room.free(node.name, demand))
    lacking = {node.name: room.lacks(node.name, demand) for node in nodes}
    short = {name for names in lacking.values() for name in names}
    needs = _amounts(demand.cpus if "CPU" in short else 0, demand.gpus if "GPU" in short else 0)
    who = demand.role if demand.section == "denoiser" else f"{demand.role} {shortage.number}/{demand.count}"
    who += f" of {demand.arm}" if demand.arm else ""
    parts = [_left(shortage, node, lacking[node.name]) for node in nodes[:MOST_NODES]]
    if len(nodes) > MOST_NODES:
        parts.append(f"{len(nodes) - MOST_NODES} more nodes have no more")
    what = "This machine" if room.cluster.started_here else "The cluster"
    arms = list(dict.fromkeys(row.arm for row in rows if row.arm))
    whose = f" of {len(arms)} arms together" if arms else ""
    return f"{what} cannot place every role{whose}: {who} needs {needs}; {'; '.join(parts)}"


def _needs(rows: list[Demand]) -> str:
    """``The arms need 3.5 CPU: guided 1.75 CPU, iql 1.75 CPU. `` of learners that are placed together, else nothing."""
    arms = dict.fromkeys(row.arm for row in rows if row.arm)
    if not arms:
        return ""

    def total(own: list[Demand]) -> str:
        return _amounts(*(sum(getattr(row, key) * row.count for row in own) for key in ("cpus", "gpus"))) or "nothing"

    each = [f"{name} {total([row for row in rows if row.arm == name])}" for name in arms]
    return f"The arms need {total(rows)}: {', '.join(each)}. "


def _left(shortage: Shortage, node: Node, lacking: list[str]) -> str:
    room = shortage.left
    name = "this machine" if room.cluster.started_here else f"node {node.name}"
    parts = []
    if "CPU" in lacking:
        held = f" ({node.busy_cpus:g} held by other jobs)" if node.busy_cpus else ""
        parts.append(f"{name} has {max(0, room.cpus[node.name]) / RESOLUTION:g} of {node.cpus:g} CPU left{held}")
    if "GPU" in lacking:
        gpus = [f"GPU {number} has {left / RESOLUTION:g}" for number, left in enumerate(room.gpus[node.name])]
        parts.append(f"{name}: {', '.join(gpus)} left" if gpus else f"{name} has no GPU")
    return " and ".join(parts)


def _amounts(cpus: float, gpus: float) -> str:
    return " and ".join(f"{amount:g} {name}" for amount, name in ((cpus, "CPU"), (gpus, "GPU")) if amount)


def _changes(config: Config, cluster: Cluster, shortage: Shortage, rows: list[Demand], fits: Fits) -> tuple[str, ...]:
    """Settings that make it fit, each by itself: those of the role that is short, else those of other roles."""
    room, demand = shortage.left, shortage.demand
    short = {name for node in room.cluster.nodes for name in room.lacks(node.name, demand)}
    keys = [key for key, name in (("gpus", "GPU"), ("cpus", "CPU")) if name in short]
    alike = [row for row in rows if row.section == demand.section and row.arm != demand.arm]
    others = [row for row in rows if row.section != demand.section]
    for group in ([demand], alike, others):
        wanted = [row for row in group if any(getattr(row, key) for key in keys)]
        found = dict.fromkeys(change for row in wanted for change in _changes_of(config, cluster, row, keys, fits))
        if found:
            return tuple(found)[:MOST_CHANGES]
    return ()


def _changes_of(config: Config, cluster: Cluster, row: Demand, keys: list[str], fits: Fits) -> Iterator[str]:
    for key in [key for key in keys if getattr(row, key)]:
        values = _lower_amounts(getattr(row, key), whole_above_one=key == "gpus")
        if key == "gpus" and not getattr(config, row.section).device.startswith("cuda"):
            values = [0.0, *values]
        value = _largest(values, lambda value, key=key: fits(_with(config, row, key, value), cluster))  # type: ignore[misc]
        if value is not None:
            yield f"{_owner(config, row, key)}{row.section}.{key}={value:g}"
    if row.section in LEAST and row.count > LEAST[row.section]:
        counts = list(range(LEAST[row.section], row.count))
        count = _largest(counts, lambda value: fits(_with(config, row, "count", value), cluster))
        if count is not None:
            yield f"{_owner(config, row, 'count')}{row.section}.count={count}"


def _lower_amounts(amount: float, whole_above_one: bool) -> list[float]:
    """Hundredths below ``amount``; GPUs beyond one are given whole."""
    if whole_above_one:
        whole = [float(value) for value in range(1, math.ceil(amount))]
        return [value / 100 for value in range(1, min(100, math.ceil(amount * 100)))] + whole
    return [value / 100 for value in range(1, math.ceil(amount * 100 - 1e-9))]


def _largest(values: list[Any], works: Callable[[Any], bool]) -> Any | None:
    """The last of the values that works, where those before it work too; what is returned does work in any case."""
    low, high, best = 0, len(values) - 1, None
    while low <= high:
        middle = (low + high) // 2
        if works(values[middle]):
            best, low = values[middle], middle + 1
        else:
            high = middle - 1
    return best


def _owner(config: Config, row: Demand, key: str) -> str:
    """``arms.NAME.`` where the row's arm has a value of its own for the key, else nothing: then the run's counts."""
    own = config.arms.get(row.arm, {})
    group = own.get(row.section)
    given = f"{row.section}.{key}" in own or (isinstance(group, Mapping) and key in group)
    return f"arms.{row.arm}." if given else ""


def _with(config: Config, row: Demand, key: str, value: Any) -> Config:
    if _owner(config, row, key):
        own = {**config.arms[row.arm], f"{row.section}.{key}": value}
        return config.model_copy(update={"arms": {**config.arms, row.arm: own}})
    changed = getattr(config, row.section).model_copy(update={key: value})
    return config.model_copy(update={row.section: changed})


def _logical_cpus(config: Config, cluster: Cluster, rows: list[Demand], fits: Fits) -> int | None:
    """The least ``cluster.cpus`` with which everything fits on the Ray that is started here."""
    [node] = cluster.nodes
    total = sum(units(row.cpus) * row.count for row in [*rows, pretrainer_demand(config)])
    for cpus in range(math.floor(node.cpus) + 1, math.ceil(total / RESOLUTION) + 1):
        if fits(config, replace(cluster, nodes=(replace(node, cpus=float(cpus)),))):
            return cpus
    return None


def _new_node(config: Config, cluster: Cluster, rows: list[Demand], fits: Fits) -> Node | None:
    """The smallest node with which, as one more, everything fits: fewest GPUs first, then fewest CPUs."""
    cpus = math.ceil(sum(units(row.cpus) * row.count for row in rows) / RESOLUTION)
    gpus = sum(math.ceil(units(row.gpus) / RESOLUTION) * row.count for row in rows)

    def works(cpus: int, gpus: int) -> bool:
        node = Node(NEW_NODE, float(cpus), (1.0,) * gpus)
        return fits(config, replace(cluster, nodes=(*cluster.nodes, node)))

    fewest = next((number for number in range(gpus + 1) if works(cpus, number)), None)
    if fewest is None:
        return None
    fewer = _largest(list(range(cpus, -1, -1)), lambda value: works(value, fewest))
    return Node(NEW_NODE, float(cpus if fewer is None else fewer), (1.0,) * fewest)
