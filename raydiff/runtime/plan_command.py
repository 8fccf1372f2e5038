"""``raydiff plan``: which worker goes to which node and GPU, or why not. Starts nothing."""

from __future__ import annotations

import os
from itertools import groupby
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from raydiff.config import Config
from raydiff.presets import arms_of, main_arm, together
from raydiff.runtime.address import find_address, prepare_environment
from raydiff.runtime.inventory import read_cluster, this_machine, usable_cpus
from raydiff.runtime.placement import PRETRAINER, Cluster, Placement, Slot, arms_at_once
from raydiff.runtime.plan import flow_limits
from raydiff.runtime.refusal import check_run, place_pretrainer
from raydiff.runtime.team import SECTIONS


def plan_table(config: Config, file: Path | None) -> RenderableType:
    """What ``train`` would do with the configuration on the cluster of ``file``, of ``cluster.address``, or here.

    A cluster at an address is looked at as it is now, with what other jobs hold. Raises ``UserError`` (of one
    paragraph: what is short, where, by how much, what to change) where the roles do not fit.
    """
    if file is not None:
        cluster = read_cluster(file, config)
    else:
        address = find_address(config.cluster.address, os.environ)
        cluster = this_machine(config) if address is None else _look(config)
    return plan_text(config, cluster)


def _look(config: Config) -> Cluster:
    prepare_environment(find_address(config.cluster.address, os.environ))
    from raydiff.runtime.join import running_ray

    with running_ray(config) as cluster:
        return cluster


def plan_text(config: Config, cluster: Cluster) -> Group:
    """The plan of a run on a cluster: workers, then what the nodes have left, then its arms. Raises ``UserError``."""
    arms, at_once = arms_of(config), together(config)
    for learner in (config, *arms.values()):
        flow_limits(learner)
    placement = check_run(config, cluster)
    pretrainer = next((slot for arm in at_once.values() if (slot := place_pretrainer(arm, cluster)) is not None), None)
    others = {name: arm for name, arm in arms.items() if name not in at_once}
    lines = [f"at the same time: {', '.join(at_once)}."] if len(at_once) > 1 else []
    lines += [_arms_line(others, cluster, pretrainer)] if others else []
    lines += [line for name, arm in {main_arm(config): config, **arms}.items() if (line := _seeds_line(name, arm))]
    if cluster.started_here and cluster.nodes[0].cpus > usable_cpus():
        lines.append(
            f"{cluster.nodes[0].cpus:g} logical CPUs are promised on {usable_cpus()} that this process may use."
        )
    return Group(
        _workers(at_once, pretrainer, placement),
        Text(),
        _nodes(cluster, placement, several=len(at_once) > 1),
        *(Text(line, style="dim") for line in ["", *lines]),
    )


def _workers(at_once: dict[str, Config], pretrainer: Slot | None, placement: Placement) -> Table:
    """Who goes where; with a column that says whose where several learners are there at once."""
    several, main = len(at_once) > 1, next(iter(at_once.values()))
    heads = ["worker", "node", "CPU", "GPU", "device"]
    table = Table(*(["arm"] if several else []), *heads, box=None, pad_edge=False)
    for slot in [*([pretrainer] if pretrainer is not None else []), *placement.slots]:
        role = slot.worker.split("/")[0]
        section = {**SECTIONS, PRETRAINER: "denoiser"}[role]
        when = " (first)" if role == PRETRAINER else ""
        device = getattr(getattr(at_once.get(slot.arm, main), section), "device", "cpu")
        cells = [slot.worker + when, slot.node, f"{slot.cpus:g}", _gpus(slot), device]
        table.add_row(*([slot.arm or "all"] if several else []), *cells)
    return table


def _gpus(slot: Slot) -> str:
    return (
        ", ".join(f"{share:g} of GPU {number}" if share < 1 else f"GPU {number}" for number, share in slot.gpus) or "-"
    )


def _nodes(cluster: Cluster, placement: Placement, several: bool) -> Table:
    """What each node has, and what the workers of the main run (and others) take of it."""
    table = Table("node", "workers", "CPU taken", "GPU taken", box=None, pad_edge=False)
    for node in cluster.nodes:
        slots = [slot for slot in placement.slots if slot.node == node.name]
        cpus = node.busy_cpus + sum(slot.cpus for slot in slots)
        shares = [1 - free for free in node.gpus]
        for slot in slots:
            for number, share in slot.gpus:
                shares[number] += share
        gpus = ", ".join(f"GPU {number}: {round(share, 4):g}" for number, share in enumerate(shares)) or "none"
        home = " (driver)" if node.name == cluster.driver else ""
        arms = list(dict.fromkeys(slot.arm for slot in slots))
        names = "; ".join(
            (f"{arm}: " if several else "") + _names([slot for slot in slots if slot.arm == arm]) for arm in arms
        )
        table.add_row(node.name + home, names or "-", f"{round(cpus, 4):g} of {node.cpus:g}", gpus)
    return table


def _names(slots: list[Slot]) -> str:
    """``learner/0, generator/0 1 2`` of one learner."""
    roles = groupby(
        sorted(slots, key=lambda slot: slot.worker.split("/")[0]), key=lambda slot: slot.worker.split("/")[0]
    )
    return ", ".join(f"{role}/{' '.join(s.worker.split('/')[1] for s in group)}" for role, group in roles)


def _seeds_line(name: str, config: Config) -> str:
    """What ``learner.seeds`` does, where there are several."""
    seeds, batch = config.seeds, config.generator.batch
    if len(seeds) == 1:
        return ""
    text = f"{name}: one learner trains the seeds {seeds[0]} to {seeds[-1]} at once"
    return text + (f"; each block has {batch} trajectories for each of them." if config.generator.count else ".")


def _arms_line(arms: dict[str, Config], cluster: Cluster, pretrainer: Slot | None) -> str:
    early = [arm for arm in arms.values() if not arm.generator.count]
    text = f"arms: {', '.join(arms)}; each of them fits"
    if not early:
        return f"{text}, one after the other once the main run is done."
    beside = arms_at_once(early, cluster, pretrainer)
    return f"{text}; of those without generators, {beside} at a time while the models are trained, the others later."
