"""Any order of completions and any losses, against a simulated learner table and an account of its own."""

from __future__ import annotations

import pytest
from conductor_world import BATCH, LENGTH, ROLES, ROWS, SYNTHETIC, Habits, World
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
    return make_config(
        generator={"count": whole(0, 4), "in_flight": whole(1, 3), "refine_when_idle": one_of(True, False)},
        refiner={"count": whole(0, 3), "min_lag": whole(1, 20)},
        guidance={"kind": one_of("policy", "policy", "policy", "none")},
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
        evaluation={"count": whole(1, 2), "every": whole(1, 30), "audit": one_of(0, 8)},
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
