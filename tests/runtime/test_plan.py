from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from raydiff.config import Config
from raydiff.errors import UserError
from raydiff.presets import derive, load_config, together
from raydiff.replay.block import RAY_INLINE_BYTES, block_bytes
from raydiff.runtime.placement import Cluster, Node
from raydiff.runtime.plan import check_blocks, check_blocks_together, check_hardware, flow_limits, retained_blocks
from raydiff.runtime.refusal import check_placement, check_run, place, place_together

PRESETS = (Path(__file__).parents[2] / "configs").rglob("*.yaml")
CONFIGS = sorted(path for path in PRESETS if path.stem != "d4rl")  # those need a task: test_tasks.py
COLUMNS = 25  # HalfCheetah: 17 + 6 + 2
MAZE_COLUMNS = 8  # 4 + 2 + 2


def config(*overrides: str) -> Config:
    return load_config(None, overrides)


def refusal(function: object, *arguments: object) -> str:
    with pytest.raises(UserError) as error:
        function(*arguments)
    return str(error.value)


def test_limits_are_in_synthetic_transitions() -> None:
    limits = flow_limits(config("generator.batch=512", "denoiser.length=3", "replay.generation=1024", "replay.lifetime=10",
                                "replay.samples_per_insert=4", "replay.ahead=1.5", "replay.behind=2",
                                "learner.batch_size=256", "replay.real_fraction=0.25", "learner.chunk=50"))  # fmt: skip
    assert limits.block_transitions == 512 * 2
    assert limits.slots == 20
    assert limits.synthetic_per_update == 192
    assert (limits.limiter.ahead, limits.limiter.behind) == (1.5 * 4 * 1024, 2 * 4 * 1024)
    assert limits.limiter.chunk_samples == 50 * 192


def test_without_generators_there_is_nothing_to_limit() -> None:
    limits = flow_limits(config("generator.count=0", "replay.real_fraction=1", "replay.warmup=1000000"))
    assert (limits.slots, limits.block_transitions, limits.synthetic_per_update) == (0, 0, 0)


def test_generation_smaller_than_a_block_still_has_one_slot() -> None:
    limits = flow_limits(config("replay.generation=1", "replay.lifetime=1", "replay.warmup=1"))
    assert limits.slots == 1


@pytest.mark.parametrize(("overrides", "parts"), [
    (["replay.real_fraction=1"], ["leaves no synthetic transition", "2 generators", "replay.real_fraction",
                                  "generator.count=0"]),
    (["replay.real_fraction=0.999"], ["leaves no synthetic transition"]),
    (["replay.warmup=20000"], ["replay.warmup=20000", "the table holds 10240", "replay.lifetime", "replay.generation"]),
    (["replay.max_lag=49"], ["replay.max_lag=49", "learner.chunk=50"]),
    (["learner.chunk=2000"], ["would stall the run", "learner.chunk"]),
    (["replay.ahead=0.01", "replay.behind=0"], ["would stall the run", "replay.ahead", "replay.behind"]),
    (["replay.samples_per_insert=0.5"], ["would stall the run"]),
    (["refiner.max_lag=499"], ["refiner.max_lag=499 is below refiner.min_lag=500"]),
    (["guidance.automatic=true", "guidance.kind=value"], ["guidance.kind=value", "guidance.automatic=false"]),
    (["guidance.automatic=true", "generator.method=synther"], ["generator.method=synther", "guidance.automatic=false"]),
])  # fmt: skip
def test_settings_that_would_stall_are_refused(overrides: list[str], parts: list[str]) -> None:
    text = refusal(flow_limits, config(*overrides))
    for part in parts:
        assert part in text


def test_an_automatic_strength_does_not_concern_arms_without_guidance() -> None:
    flow_limits(config("guidance.automatic=true", "guidance.kind=none"))
    flow_limits(config("guidance.automatic=true", "guidance.kind=value", "generator.count=0"))
    flow_limits(config("guidance.automatic=true", "refiner.max_lag=500"))


def test_max_lag_of_one_chunk_and_warmup_of_the_whole_table_are_accepted() -> None:
    assert flow_limits(config("replay.max_lag=50", "replay.warmup=10240")).slots == 20


def machine(given: Config, cpus: float = 2.0) -> Cluster:
    node = Node("this machine", cpus, (), float(given.cluster.object_store_mb))
    return Cluster((node,), node.name, started_here=True)


def blocks(given: Config, on: Cluster | None = None) -> None:
    on = on or machine(given)
    columns = MAZE_COLUMNS if (given.data.environment or "").startswith("maze2d") else COLUMNS
    check_blocks(given, columns, on, place(given, on))


def test_blocks_that_ray_would_inline_are_refused_and_the_least_batch_is_named() -> None:
    text = refusal(blocks, config("generator.batch=64"))
    assert "generator.batch=64 makes blocks of 19 KB" in text
    least = int(text.split("at least ")[1].split(",")[0])
    assert block_bytes(least, 3, COLUMNS) > RAY_INLINE_BYTES >= block_bytes(least - 1, 3, COLUMNS)
    blocks(config(f"generator.batch={least}"))
    blocks(config("generator.batch=64", "generator.count=0"))


BIG = ["replay.generation=200000", "replay.lifetime=10", "generator.batch=10000"]


def test_a_block_holds_the_trajectories_of_every_seed() -> None:
    blocks(config("generator.batch=128", "learner.seeds=4"))
    assert "generator.batch=64 makes blocks of 38 KB" in refusal(
        blocks, config("generator.batch=64", "learner.seeds=2")
    )
    least = RAY_INLINE_BYTES // (3 * COLUMNS * 4 * 2) + 1
    assert f"at least {least}," in refusal(blocks, config("generator.batch=64", "learner.seeds=2"))
    blocks(config(f"generator.batch={least}", "learner.seeds=2"))
    one, two = (refusal(blocks, config(*BIG, f"learner.seeds={seeds}")) for seeds in (1, 2))
    needed = [int(text.partition("hold up to ")[2].split()[0]) for text in (one, two)]
    assert abs(needed[1] - 2 * needed[0]) <= 1


def test_blocks_that_fill_the_object_store_are_refused() -> None:
    text = refusal(blocks, config(*BIG))
    assert "cluster.object_store_mb=512" in text
    needed = int(text.split("Raise it to ")[1].split(",")[0])
    blocks(config(*BIG, f"cluster.object_store_mb={needed}"))
    assert "object store" in refusal(blocks, config(*BIG, f"cluster.object_store_mb={needed - 2}"))


def test_learners_at_once_share_the_object_store() -> None:
    alone = ["replay.generation=50000", "replay.lifetime=10", "generator.batch=10000"]
    given = config(*alone, "arms.seed.seed=[1]", "arms_together=true", "arms.real.generator.count=0")
    on = machine(given, 4.0)
    blocks(given, on)  # each by itself has room
    text = refusal(check_blocks_together, together(given), COLUMNS, on, place_together(given, on))
    assert "The replay stores of guided, seed_1 would hold up to " in text
    least = int(text.split("Raise it to ")[1].split(",")[0])
    larger = machine(config(f"cluster.object_store_mb={least}"), 4.0)
    check_blocks_together(together(given), COLUMNS, larger, place_together(given, larger))


def test_nodes_share_the_blocks_as_they_share_the_generators() -> None:
    given = config(*BIG, "generator.count=6", "refiner.count=0")
    pair = Cluster((Node("a", 2, (), 2000.0), Node("b", 2, (), 2000.0)), "a")
    kept = {node.name: count for node, count in retained_blocks(given, pair, place(given, pair))}
    assert kept == {"a": 200 * 2 // 6 + 1 + 12, "b": 200 * 4 // 6 + 1 + 8}
    blocks(given, pair)
    small = replace(pair, nodes=(pair.nodes[0], replace(pair.nodes[1], object_store_mb=512.0)))
    text = refusal(blocks, given, small)
    assert "object store of node b (512 MB)" in text
    assert "ray start --object-store-memory=" in text


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_presets_are_not_refused(path: Path) -> None:
    loaded = load_config(path)
    check_run(loaded, machine(loaded, max(2.0, loaded.cluster.cpus or 0)))
    for arm in (loaded, *(derive(loaded, values, name) for name, values in loaded.arms.items())):
        flow_limits(arm)
        on = machine(arm, max(2.0, arm.cluster.cpus or 0))
        check_placement(arm, on)
        blocks(arm, on)


def test_devices_are_checked_against_the_gpus_of_this_machine_where_workers_stay_on_it() -> None:
    assert "number 0" in refusal(check_hardware, config("learner.device=cuda"), 0)
    assert "is not a device" in refusal(check_hardware, config("learner.device=gpu"), None)
    check_hardware(config("learner.device=cuda"), None)
    check_hardware(config("learner.device=cuda:1"), 2)
