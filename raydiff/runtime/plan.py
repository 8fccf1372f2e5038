"""What a configuration asks for, worked out before anything starts: flow limits, devices, memory.

Pure functions of the configuration and of a description of the cluster; every refusal says which resource or
setting is short, by how much, and what to change. Where workers go is ``raydiff.runtime.placement``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from raydiff.config import Config
from raydiff.errors import UserError
from raydiff.replay.block import RAY_INLINE_BYTES, block_bytes
from raydiff.replay.limiter import SampleLimiter
from raydiff.replay.mixture import real_rows
from raydiff.runtime.pairs import check_pair
from raydiff.runtime.placement import DEVICE_SECTIONS, RESOLUTION, Cluster, Node, Placement
from raydiff.runtime.team import counts, steers


@dataclass(frozen=True)
class FlowLimits:
    """The numbers that pace a run, each of one seed; ``slots`` of ``block_transitions`` rows make the learner's table."""

    limiter: SampleLimiter
    slots: int
    block_transitions: int
    synthetic_per_update: int


def flow_limits(config: Config) -> FlowLimits:
    """Derive the limiter and the table's size. Raises ``UserError`` for settings that would stall or make no sense."""
    replay, learner, batch = config.replay, config.learner, config.generator.batch
    _check_noise(config)
    _check_refinement(config)
    check_pair(config)
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
    transitions = batch * (config.rows - 1)
    if config.schedule.kind != "continuous":
        return _dataset_limits(config, transitions, synthetic)
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


def _dataset_limits(config: Config, transitions: int, synthetic: int) -> FlowLimits:
    """The table of schedules that make whole datasets: the front one, and the back one if there are several."""
    schedule, replay = config.schedule, config.replay
    if replay.max_lag is not None:
        raise UserError(
            f"replay.max_lag={replay.max_lag} with schedule.kind={schedule.kind}: the age of the data follows from the "
            "schedule there, and the run would stall at once. Remove replay.max_lag, or use schedule.kind=continuous."
        )
    epochs = schedule.epochs if schedule.kind == "periodic" else 1
    if epochs > config.learner.updates:
        raise UserError(
            f"schedule.epochs={epochs} datasets for learner.updates={config.learner.updates}: some would never be "
            "trained on. Lower schedule.epochs."
        )
    blocks = -(-replay.generation // config.generator.batch)
    limiter = SampleLimiter(replay.samples_per_insert, 0, 0, 0)
    return FlowLimits(limiter, blocks * min(epochs, 2), transitions, synthetic)


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


def _check_refinement(config: Config) -> None:
    """Refuse contradictory ages of what is refreshed, and a strength that nothing could adapt."""
    refiner, guidance = config.refiner, config.guidance
    if refiner.max_lag is not None and refiner.max_lag < refiner.min_lag:
        raise UserError(
            f"refiner.max_lag={refiner.max_lag} is below refiner.min_lag={refiner.min_lag}: blocks would have to be "
            "refreshed before they may be. Raise refiner.max_lag or lower refiner.min_lag."
        )
    if guidance.automatic and guidance.kind != "none" and config.generator.count and not steers(config):
        raise UserError(
            f"guidance.automatic=true with guidance.kind={guidance.kind} and generator.method="
            f"{config.generator.method}: the strength is adapted to the likelihood of actions under the policy, which "
            "follows it only with guidance.kind=policy and generator.method=pgd. Set guidance.automatic=false."
        )


def check_hardware(config: Config, gpus: int | None) -> None:
    """Refuse torch devices that a machine with ``gpus`` CUDA devices does not have.

    ``gpus`` is None where workers go to other machines: then the placement tells.
    """
    for role in DEVICE_SECTIONS:
        device = getattr(config, role).device
        kind, colon, index = device.partition(":")
        if device != "cpu" and (kind != "cuda" or (colon and not index.isdecimal())):
            raise UserError(f"{role}.device={device} is not a device. Use cpu, cuda or cuda:N.")
        if gpus is not None and kind == "cuda" and int(index or 0) >= gpus:
            raise UserError(
                f"{role}.device={device}, but the CUDA devices that torch can use here number {gpus}. Set "
                f"{role}.device=cpu, or install a driver and a build of torch that know the GPU."
            )


def check_devices(config: Config) -> None:
    """Refuse shares and torch devices that Ray cannot give: it shows a worker its own GPUs only, counted from 0."""
    for section in DEVICE_SECTIONS:
        settings = getattr(config, section)
        gpus, (kind, _, index) = settings.gpus, settings.device.partition(":")
        if gpus > 1 and gpus != int(gpus):
            raise UserError(
                f"{section}.gpus={gpus:g}: Ray gives a share of one GPU, or whole GPUs. Use {section}.gpus={int(gpus)} "
                f"or {section}.gpus={int(gpus) + 1}."
            )
        if 0 < gpus < 1 / RESOLUTION:
            raise UserError(f"{section}.gpus={gpus:g} is less than the smallest share that Ray counts, 0.0001.")
        if kind != "cuda":
            continue
        if gpus == 0:
            raise UserError(
                f"{section}.device={settings.device} but {section}.gpus=0, so Ray would hide every GPU from it. Set "
                f"{section}.gpus to the share that it may use, for example {section}.gpus=0.25."
            )
        if index.isdecimal() and int(index) >= max(1, gpus):
            raise UserError(
                f"{section}.device={settings.device}: on Ray a worker sees its own GPUs only, counted from 0, and it has "
                f"{max(1, int(gpus))}. Set {section}.device=cuda; Ray chooses the GPU."
            )


def check_blocks(config: Config, columns: int, cluster: Cluster, placement: Placement) -> None:
    """``check_blocks_together`` of one learner."""
    check_blocks_together({"": config}, columns, cluster, placement)


def check_blocks_together(arms: Mapping[str, Config], columns: int, cluster: Cluster, placement: Placement) -> None:
    """Refuse blocks so small that Ray would copy them into the driver's heap instead of its object stores, and more
    of them than half of a node's object store. ``placement`` is that of all the learners."""
    stores: dict[str, float] = dict.fromkeys((node.name for node in cluster.nodes), 0.0)
    for name, config in arms.items():
        if config.generator.count:
            size = _block_size(config, columns)
            for node, blocks in retained_blocks(config, cluster, placement.arm(name)):
                stores[node.name] += blocks * size / 2**20
    for node in cluster.nodes:
        needed, store = stores[node.name], node.object_store_mb
        if store is None or needed <= store / 2:
            continue
        where = f" of node {node.name}" if len(cluster.nodes) > 1 else ""
        setting = f"cluster.object_store_mb={store:.0f}" if cluster.started_here else f"{store:.0f} MB"
        larger = math.floor(2 * needed + 1)
        what = "The replay store" if len(arms) == 1 else f"The replay stores of {', '.join(arms)}"
        raise UserError(
            f"{what} would hold up to {needed:.0f} MB of blocks, more than half of the object store{where} "
            f"({setting}). Raise it to {larger}"
            + ("" if cluster.started_here else f" MB (`ray start --object-store-memory={larger * 2**20}`)")
            + ", or lower replay.lifetime or replay.generation."
        )


def _block_size(config: Config, columns: int) -> int:
    """Bytes of a block; raises ``UserError`` where Ray would copy it."""
    seeds = config.learner.seeds
    size = block_bytes(config.generator.batch * seeds, config.rows, columns)
    if size <= RAY_INLINE_BYTES:
        least = RAY_INLINE_BYTES // (config.rows * columns * 4 * seeds) + 1
        raise UserError(
            f"generator.batch={config.generator.batch} makes blocks of {size / 1024:.0f} KB; Ray keeps objects of up to "
            f"{RAY_INLINE_BYTES // 1024} KB in the driver's memory instead of the object store. Use generator.batch of "
            f"at least {least}, or --runtime local."
        )
    return size


def retained_blocks(config: Config, cluster: Cluster, placement: Placement) -> Iterator[tuple[Node, int]]:
    """The most blocks that each node's object store keeps at a time.

    A block stays where it was made, so nodes share the table's blocks as they share the generators and refiners; on
    top come those in the making, and a few that are on their way into the learner.
    """
    slots, passing = flow_limits(config).slots, 2 * config.generator.count + counts(config)["refiner"]
    roles = {name: [s.worker.split("/")[0] for s in placement.slots if s.node == name] for name in placement.nodes()}
    makers = sum(names.count("generator") + names.count("refiner") for names in roles.values())
    for node in cluster.nodes:
        names = roles.get(node.name, [])
        made = names.count("generator") + names.count("refiner")
        through = passing if "learner" in names else 2 * names.count("generator") + names.count("refiner")
        if made or "learner" in names:
            yield node, -(-slots * made // makers) + through
