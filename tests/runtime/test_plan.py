from __future__ import annotations

import os
from pathlib import Path

import pytest

from raydiff.config import Config
from raydiff.errors import UserError
from raydiff.presets import derive, load_config
from raydiff.replay.block import RAY_INLINE_BYTES, block_bytes
from raydiff.runtime.plan import (
    Machine,
    arms_at_once,
    check_blocks,
    check_placement,
    demands,
    flow_limits,
    this_machine,
    usable_cpus,
    usable_gpus,
)

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
COLUMNS = 25  # HalfCheetah: 17 + 6 + 2


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
])  # fmt: skip
def test_settings_that_would_stall_are_refused(overrides: list[str], parts: list[str]) -> None:
    text = refusal(flow_limits, config(*overrides))
    for part in parts:
        assert part in text


def test_max_lag_of_one_chunk_and_warmup_of_the_whole_table_are_accepted() -> None:
    assert flow_limits(config("replay.max_lag=50", "replay.warmup=10240")).slots == 20


def test_demands_in_the_order_of_the_start() -> None:
    rows = demands(config("generator.count=3", "refiner.count=2"))
    assert [(row.role, row.count) for row in rows] == [
        ("learner", 1), ("evaluation", 1), ("generator", 3), ("refiner", 2),
    ]  # fmt: skip
    assert [row.role for row in demands(config("generator.count=0", "refiner.count=2"))] == ["learner", "evaluation"]
    assert [row.role for row in demands(config("refiner.count=0"))] == ["learner", "evaluation", "generator"]


@pytest.mark.parametrize(("overrides", "machine", "parts"), [
    (["generator.cpus=1", "generator.count=2"], Machine(2, 0),
     ["generator 2/2 needs 1 CPU, and 0 of 2 are left", "generator.cpus", "generator.count=1", "cluster.cpus"]),
    (["learner.cpus=4"], Machine(2, 0), ["learner 1/1 needs 4 CPU, and 2 of 2 are left", "learner.cpus"]),
    (["refiner.count=9"], Machine(3, 0), ["refiner 7/9 needs 0.25 CPU, and 0 of 3 are left", "refiner.count=6"]),
    (["learner.gpus=1", "generator.gpus=0.5"], Machine(8, 1),
     ["generator 1/2 needs 0.5 GPU, and 0 of 1 are left", "generator.gpus", "cluster.gpus"]),
    (["learner.gpus=0.5"], Machine(8, 0), ["learner 1/1 needs 0.5 GPU, and 0 of 0 are left"]),
    (["denoiser.cpus=16"], Machine(8, 0), ["pretrainer", "needs 16 CPU", "8 in all", "denoiser.cpus"]),
    (["denoiser.gpus=2"], Machine(8, 1), ["pretrainer", "needs 2 GPU", "1 in all", "denoiser.gpus"]),
])  # fmt: skip
def test_roles_that_do_not_fit_are_refused_by_name(overrides: list[str], machine: Machine, parts: list[str]) -> None:
    text = refusal(check_placement, config(*overrides), machine)
    for part in parts:
        assert part in text, text


def test_roles_that_just_fit_are_accepted() -> None:
    check_placement(config("generator.count=3", "refiner.count=1", "generator.cpus=0.25"), Machine(2, 0))
    check_placement(
        config("generator.count=10", "generator.cpus=0.1", "refiner.count=0"), Machine(2, 0)
    )  # sums of tenths
    check_placement(
        config("generator.count=0", "denoiser.cpus=64", "denoiser.gpus=1"), Machine(1, 0)
    )  # no model needed


@pytest.mark.parametrize("role", ["learner", "generator", "refiner", "denoiser"])
def test_gpu_device_without_a_share_is_refused(role: str) -> None:
    text = refusal(check_placement, config(f"{role}.device=cuda:0"), Machine(8, 1))
    assert f"{role}.device=cuda:0 but {role}.gpus=0" in text
    check_placement(config(f"{role}.device=cuda", f"{role}.gpus=0.25"), Machine(8, 1))


def test_this_machine_is_counted_as_the_configuration_wants() -> None:
    assert usable_cpus() == len(os.sched_getaffinity(0))
    assert this_machine(config()) == Machine(usable_cpus(), usable_gpus())
    assert this_machine(config("cluster.cpus=64", "cluster.gpus=3")) == Machine(64, 3)


def test_blocks_that_ray_would_inline_are_refused_and_the_least_batch_is_named() -> None:
    text = refusal(check_blocks, config("generator.batch=64"), COLUMNS)
    assert "generator.batch=64 makes blocks of 19 KB" in text
    least = int(text.split("at least ")[1].split(",")[0])
    assert block_bytes(least, 3, COLUMNS) > RAY_INLINE_BYTES >= block_bytes(least - 1, 3, COLUMNS)
    check_blocks(config(f"generator.batch={least}"), COLUMNS)
    check_blocks(config("generator.batch=64", "generator.count=0"), COLUMNS)


def test_blocks_that_fill_the_object_store_are_refused() -> None:
    big = ["replay.generation=200000", "replay.lifetime=10", "generator.batch=10000"]
    text = refusal(check_blocks, config(*big), COLUMNS)
    assert "cluster.object_store_mb=512" in text
    needed = int(text.split("Raise it to ")[1].split(",")[0])
    check_blocks(config(*big, f"cluster.object_store_mb={needed}"), COLUMNS)
    assert "object store" in refusal(check_blocks, config(*big, f"cluster.object_store_mb={needed - 2}"), COLUMNS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_presets_are_not_refused(path: Path) -> None:
    loaded = load_config(path)
    for arm in (loaded, *(derive(loaded, values, name) for name, values in loaded.arms.items())):
        flow_limits(arm)
        check_placement(arm, Machine(max(2.0, arm.cluster.cpus or 0), 0.0))
        check_blocks(arm, COLUMNS)


def test_arms_run_beside_the_pretrainer_only_where_both_fit() -> None:
    arm = config("generator.count=0", "learner.cpus=1", "evaluation.cpus=0")
    two, four = Machine(2, 0), Machine(4, 0)
    assert [arms_at_once([arm] * 3, two, pretraining) for pretraining in (True, False)] == [1, 2]
    assert [arms_at_once([arm] * 3, four, pretraining) for pretraining in (True, False)] == [3, 3]
    greedy = config("generator.count=0", "learner.cpus=1", "denoiser.cpus=2")
    assert arms_at_once([greedy], two, pretraining=True) == 0  # it would wait for a CPU until its start had failed
    assert arms_at_once([greedy], two, pretraining=False) == 1
    gpu = config("generator.count=0", "learner.gpus=1", "denoiser.gpus=1")
    assert arms_at_once([gpu, gpu], Machine(8, 1), pretraining=True) == 0
    assert arms_at_once([gpu, gpu], Machine(8, 1), pretraining=False) == 1
    assert arms_at_once([], two, pretraining=True) == 0
