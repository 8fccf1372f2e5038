"""Any order of completions and any losses, against a simulated learner table and an account of its own."""

from __future__ import annotations

import pytest
from conductor_rules import BATCH, LENGTH, ROLES, ROWS, SYNTHETIC
from conductor_world import Habits, World
from hypothesis import given, settings
from hypothesis import strategies as st

from raydiff.config import Config


def make_config(**values: object) -> Config:
    """Small numbers; ``behind`` is raised where ``ahead`` alone would stall."""
    replay = {"samples_per_insert": 1.0, "ahead": 1.0, "behind": 1.0, "generation": BATCH, "warmup": 1, "lifetime": 2}
    replay |= values.pop("replay", {})
    learner = {"batch_size": 2 * SYNTHETIC, "chunk": 2, "updates": 20} | values.pop("learner", {})
    least = learner["chunk"] * SYNTHETIC / (ROWS * replay["samples_per_insert"])
    replay["behind"] = max(replay["behind"], least - replay["ahead"] + 1e-9 if least > replay["ahead"] else 0.0)
    generator = {"batch": BATCH} | values.pop("generator", {})
    rest = {"denoiser": {"length": LENGTH}, **values}
    return Config.model_validate({"replay": replay, "learner": learner, "generator": generator, **rest})


@st.composite
def configs(draw: st.DrawFn) -> Config:
    def whole(low: int, high: int) -> int:
        return draw(st.integers(low, high))

    def one_of(*values: object) -> object:
        return draw(st.sampled_from(values))

    chunk, lifetime, generation = whole(1, 8), whole(1, 3), whole(1, 16)
    in_flight, shortage = whole(1, 3), one_of("wait", "wait", "real")
    least = chunk if shortage == "wait" else (in_flight + 1) * chunk
    slots = max(1, lifetime * generation // BATCH)
    min_lag = whole(1, 20)
    count, method = whole(0, 4), one_of("pgd", "pgd", "pgd", "dydiff", "pets")
    return make_config(
        generator={
            "count": count,
            "in_flight": whole(1, 3),
            "refine_when_idle": one_of(True, False),
            "method": method,
        },
        rollout={"horizon": LENGTH - 1},
        refiner={
            "count": whole(0, 3),
            "min_lag": min_lag,
            "max_lag": one_of(None, None, min_lag, min_lag + 5),
            "fraction": one_of(None, None, 0.0, 0.3, 1.0),
        },
        guidance={
            "kind": one_of("policy", "policy", "policy", "none"),
            "automatic": one_of(True, False) if method == "pgd" and count else False,
        },
        learner={"chunk": chunk, "in_flight": in_flight, "updates": whole(1, 60)},
        replay={
            "samples_per_insert": one_of(0.3, 1.0, 2.0, 7.5),
            "ahead": one_of(0.1, 0.5, 1.0, 2.5),
            "behind": one_of(0.0, 0.5, 1.0, 3.0),
            "lifetime": lifetime,
            "generation": generation,
            "warmup": whole(1, slots * BATCH),
            "warmup_guidance": one_of(True, False),
            "max_lag": one_of(None, least, least, least + 1, 2 * least, 5 * least),
            "shortage": shortage,
        },
        evaluation={"count": whole(1, 2), "every": whole(1, 30)},
        audit={"count": whole(0, 2)},
    )


@st.composite
def habits(draw: st.DrawFn) -> Habits:
    return Habits(
        seed=draw(st.integers(0, 2**32)),
        pace={role: draw(st.sampled_from([0.02, 0.3, 1.0, 5.0])) for role in ROLES},
        losses=draw(st.sampled_from([0, 0, 3, 20])),
        gone=draw(st.integers(0, 3)),
        blocks_lost=draw(st.sampled_from([0, 0, 10])),
        partial=draw(st.sampled_from([0.0, 0.5])),
        empty=draw(st.sampled_from([0.0, 0.0, 0.2])),
    )


@settings(max_examples=400, deadline=None, derandomize=True)
@given(configs(), habits())
def test_any_order_of_completions_and_any_losses(config: Config, habits: Habits) -> None:
    World(config, habits).run()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("refiners", [0, 1])
@pytest.mark.parametrize("slow", ["generate", "ingest", "refine", "train"])
def test_tight_max_lag_and_slow_weights_keep_training(seed: int, refiners: int, slow: str) -> None:
    """Every block is old when it arrives: it was asked for long before the updates that have been done since."""
    pace = {role: 0.01 if role == slow else 1.0 for role in ROLES}
    config = make_config(
        generator={"count": 2, "in_flight": 2},
        refiner={"count": refiners, "min_lag": 4},
        learner={"chunk": 4, "in_flight": 3, "updates": 200},
        replay={"max_lag": 4, "lifetime": 4, "warmup": 16, "samples_per_insert": 4.0, "behind": 4.0},
        evaluation={"every": 50},
    )
    World(config, Habits(seed, pace)).run(limit=6_000)


@pytest.mark.parametrize("seed", range(8))
def test_an_automatic_strength_hears_of_all_that_was_made_with_it(seed: int) -> None:
    """The world checks each command and each answer; here some of every kind must have come."""
    config = make_config(
        generator={"count": 2},
        refiner={"count": 1, "min_lag": 4},
        guidance={"automatic": True},
        learner={"updates": 400},
        replay={"lifetime": 16, "warmup": 40, "max_lag": 100},
    )
    world = World(config, Habits(seed))
    world.run()
    assert world.unguided_errors
    assert {len(answer) for answer in world.controller.heard} == {1, 3}  # of blocks, and of audits


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("fraction", [0.25, 1.0])
def test_refinement_uses_its_share_and_no_more(seed: int, fraction: float) -> None:
    config = make_config(
        generator={"count": 2},
        refiner={"count": 2, "min_lag": 1, "fraction": fraction},
        learner={"updates": 400},
        replay={"lifetime": 8, "warmup": 8},
    )
    world = World(config, Habits(seed))
    world.run()
    assert fraction * world.generated - 2 * BATCH <= world.refreshed <= fraction * world.generated


@pytest.mark.parametrize("seed", range(4))
def test_what_is_overdue_is_refreshed_by_generators_too(seed: int) -> None:
    """No refiner, and generators that do not refresh in their spare time: without the limit nothing is refreshed."""
    values = {"generator": {"count": 2, "refine_when_idle": False}, "learner": {"updates": 200}}
    lags = {}
    for max_lag in (None, 10):
        world = World(make_config(refiner={"count": 0, "min_lag": 5, "max_lag": max_lag}, replay={
            "lifetime": 12, "warmup": 16}, **values), Habits(seed))  # fmt: skip
        world.run()
        lags[max_lag] = max(world.newest - version for version in world.table.values())
        assert bool(world.refreshed) == (max_lag is not None)
    assert lags[10] < lags[None]
