"""What a configuration asks for, worked out before anything starts: flow limits, memory, placement.

Pure functions of the configuration and of a description of the machine; every refusal says which resource or
setting is short, by how much, and what to change.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from raydiff.config import Config
from raydiff.errors import UserError
from raydiff.replay.block import RAY_INLINE_BYTES, block_bytes
from raydiff.replay.limiter import SampleLimiter
from raydiff.replay.mixture import real_rows

DEVICE_SECTIONS = ("learner", "evaluation", "generator", "refiner", "denoiser")


@dataclass(frozen=True)
class FlowLimits:
    """The numbers that pace a run; ``slots`` of ``block_transitions`` rows each make the learner's table."""

    limiter: SampleLimiter
    slots: int
    block_transitions: int
    synthetic_per_update: int


@dataclass(frozen=True)
class Demand:
    """What one actor of a role asks of a node."""

    role: str
    count: int
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Machine:
    """What a node has. ``cpus`` are Ray's logical CPUs."""

    cpus: float
    gpus: float


def flow_limits(config: Config) -> FlowLimits:
    """Derive the limiter and the table's size. Raises ``UserError`` for settings that would stall or make no sense."""
    replay, learner, batch = config.replay, config.learner, config.generator.batch
    _check_noise(config)
    if not config.generator.count:
        limiter = SampleLimiter(replay.samples_per_insert, 0, 0, 0)
        return FlowLimits(limiter, 0, 0, 0)
    synthetic = learner.batch_size - real_rows(learner.batch_size, replay.real_fraction)
    if not synthetic:
        raise UserError(
            f"replay.real_fraction={replay.real_fraction:g} leaves no synthetic transition in a batch of "
            f"{learner.batch_size}, so {config.generator.count} generators would stall at once with nobody to take "
            "their data. Lower replay.real_fraction, or set generator.count=0 to train on real data alone."
        )
    transitions = batch * (config.denoiser.length - 1)
    capacity = replay.lifetime * replay.generation
    slots = max(1, capacity // batch)
    if replay.warmup > slots * batch:
        raise UserError(
            f"replay.warmup={replay.warmup} trajectories never fit: the table holds {slots * batch} "
            f"(lifetime {replay.lifetime} x generation {replay.generation}, in blocks of generator.batch={batch}). "
            "The learner would wait for ever. Lower replay.warmup, or raise replay.lifetime or replay.generation."
        )
    if replay.max_lag is not None and replay.max_lag < learner.chunk:
        raise UserError(
            f"replay.max_lag={replay.max_lag} is less than learner.chunk={learner.chunk}: even data of the newest "
            "policy would be too old by the end of one learner call, so the run would stall. Raise replay.max_lag or "
            "lower learner.chunk."
        )
    block_samples = transitions * replay.samples_per_insert
    limiter = SampleLimiter(
        replay.samples_per_insert,
        ahead=replay.ahead * block_samples,
        behind=replay.behind * block_samples,
        chunk_samples=learner.chunk * synthetic,
    )
    return FlowLimits(limiter, slots, transitions, synthetic)


def _check_noise(config: Config) -> None:
    """Refuse noise levels that the sampler could not run through."""
    low, high, refresh = config.sampler.sigma_min, config.sampler.sigma_max, config.refiner.sigma
    if low >= high:
        raise UserError(f"sampler.sigma_min={low:g} must be below sampler.sigma_max={high:g}. 0.002 and 80 are usual.")
    if refresh > high:
        raise UserError(
            f"refiner.sigma={refresh:g} is above sampler.sigma_max={high:g}, where the denoiser was never meant to be "
            "used. Lower refiner.sigma; 0.3 to 3 are useful values."
        )


def demands(config: Config) -> list[Demand]:
    """The actors of the main run, in the order in which they start."""
    sampling = config.generator.count > 0
    rows = [
        Demand("learner", 1, config.learner.cpus, config.learner.gpus),
        Demand("evaluation", config.evaluation.count, config.evaluation.cpus, config.evaluation.gpus),
        Demand("generator", config.generator.count, config.generator.cpus, config.generator.gpus),
        Demand("refiner", config.refiner.count if sampling else 0, config.refiner.cpus, config.refiner.gpus),
    ]
    return [row for row in rows if row.count]


def this_machine(config: Config) -> Machine:
    """The node that this process runs on, as the configuration wants it counted."""
    cpus, gpus = config.cluster.cpus, config.cluster.gpus
    return Machine(float(usable_cpus() if cpus is None else cpus), float(usable_gpus() if gpus is None else gpus))


def usable_cpus() -> int:
    """CPUs that this process may run on (its affinity, where the system tells)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_gpus() -> int:
    """CUDA devices that torch sees."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def check_hardware(config: Config, gpus: int) -> None:
    """Refuse torch devices that a machine with ``gpus`` CUDA devices does not have, for either runtime."""
    for role in DEVICE_SECTIONS:
        device = getattr(config, role).device
        kind, colon, index = device.partition(":")
        if device != "cpu" and (kind != "cuda" or (colon and not index.isdecimal())):
            raise UserError(f"{role}.device={device} is not a device. Use cpu, cuda or cuda:N.")
        if kind == "cuda" and int(index or 0) >= gpus:
            raise UserError(
                f"{role}.device={device}, but the CUDA devices that torch can use here number {gpus}. Set "
                f"{role}.device=cpu, or install a driver and a build of torch that know the GPU."
            )


def check_placement(config: Config, machine: Machine) -> None:
    """Refuse roles that the machine cannot hold, naming the first that is short, and settings unfit for Ray."""
    _check_pretrainer(config, machine)
    free = {"CPU": machine.cpus, "GPU": machine.gpus}
    for row in demands(config):
        for number in range(1, row.count + 1):
            for name, need, key in (("CPU", row.cpus, "cpus"), ("GPU", row.gpus, "gpus")):
                if need > free[name] + 1e-9:
                    fit = f"{row.role}.count={number - 1}" if number > 1 else f"fewer {name}s for the roles before it"
                    raise UserError(
                        f"This machine cannot place every role: {row.role} {number}/{row.count} needs {need:g} {name}, "
                        f"and {free[name]:g} of {getattr(machine, key):g} are left. Lower {row.role}.{key}, use {fit}, "
                        f"or let Ray count more with cluster.{key}."
                    )
                free[name] -= need
    _check_devices(config)


def arms_at_once(arms: list[Config], machine: Machine, pretraining: bool) -> int:
    """How many of the arms (those without generators) may run side by side, the pretrainer included in the account.

    One may always run by itself; beside the pretrainer none may where there is no room, for its actors would wait
    for resources until their start counts as failed.
    """
    if not arms:
        return 0
    room = len(arms)
    for key in ("cpus", "gpus"):
        need = max(sum(row.count * getattr(row, key) for row in demands(arm)) for arm in arms)
        free = getattr(machine, key) - (getattr(arms[0].denoiser, key) if pretraining else 0)
        if need > 0:
            room = min(room, max(0, int((free + 1e-9) // need)))
    return room if pretraining else max(1, room)


def _check_pretrainer(config: Config, machine: Machine) -> None:
    """The pretrainer starts before the roles of the main run and needs room only for itself."""
    if not config.generator.count:
        return
    for name, need, key in (("CPU", config.denoiser.cpus, "cpus"), ("GPU", config.denoiser.gpus, "gpus")):
        have = getattr(machine, key)
        if need > have + 1e-9:
            raise UserError(
                f"This machine cannot place the pretrainer: it needs {need:g} {name}, and there are {have:g} in all. "
                f"Lower denoiser.{key}, or let Ray count more with cluster.{key}."
            )


def check_blocks(config: Config, columns: int) -> None:
    """Refuse blocks so small that Ray would copy them into the driver's heap instead of its object store."""
    if not config.generator.count:
        return
    size = block_bytes(config.generator.batch, config.denoiser.length, columns)
    if size <= RAY_INLINE_BYTES:
        least = RAY_INLINE_BYTES // (config.denoiser.length * columns * 4) + 1
        raise UserError(
            f"generator.batch={config.generator.batch} makes blocks of {size / 1024:.0f} KB; Ray keeps objects of up to "
            f"{RAY_INLINE_BYTES // 1024} KB in the driver's memory instead of the object store. Use generator.batch of "
            f"at least {least}, or --runtime local."
        )
    store = config.cluster.object_store_mb * 2**20
    retained = size * (flow_limits(config).slots + 2 * config.generator.count + config.refiner.count)
    if retained > store / 2:
        raise UserError(
            f"The replay store would hold up to {retained / 2**20:.0f} MB of blocks, more than half of the object store "
            f"(cluster.object_store_mb={config.cluster.object_store_mb}). Raise it to {2 * retained / 2**20 + 1:.0f}, "
            "or lower replay.lifetime or replay.generation."
        )


def _check_devices(config: Config) -> None:
    for role in DEVICE_SECTIONS:
        section = getattr(config, role)
        if section.device.startswith("cuda") and section.gpus == 0:
            raise UserError(
                f"{role}.device={section.device} but {role}.gpus=0, so Ray would hide every GPU from it. Set "
                f"{role}.gpus to the share that it may use, for example {role}.gpus=0.25."
            )
