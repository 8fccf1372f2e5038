"""The generator of fixed speed: real blocks, each call as long as it was told."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from raydiff.config import Config
from raydiff.roles.emulated import EmulatedGenerator, make_generator
from raydiff.roles.generator import Generator
from raydiff.roles.models import Models
from raydiff.types import PolicyBlob


def test_blocks_are_real_and_calls_take_their_time(
    role_config: Callable[..., Config], role_models: Models, make_policy: Callable[[int, int], PolicyBlob]
) -> None:
    tiny, models = role_config(), role_models
    section = tiny.generator.model_copy(update={"emulate_s": 0.3})
    emulated = make_generator(tiny.model_copy(update={"generator": section}), models, "generator/0", "learner")
    assert isinstance(emulated, EmulatedGenerator)
    real = Generator(tiny, models, "generator/0", "learner")
    first, _ = emulated.generate(make_policy(0, 10), 16, 5, 1, True)
    expected, _ = real.generate(make_policy(0, 10), 16, 5, 1, True)
    np.testing.assert_array_equal(first, expected)
    start = time.perf_counter()
    again, report = emulated.generate(make_policy(0, 20), 16, 6, 2, True)
    assert 0.3 <= time.perf_counter() - start < 1.0
    np.testing.assert_array_equal(again, first)
    assert again is not first
    origin = report.provenance
    assert (origin.block, origin.shard, origin.policy_version, origin.guidance) == (2, 6, 20, "emulated")
    assert 0.3 <= origin.time["end"] - origin.time["start"] < 1.0


def test_refreshes_of_idle_generators_take_their_time_too(
    role_config: Callable[..., Config], role_models: Models, make_policy: Callable[[int, int], PolicyBlob]
) -> None:
    config = role_config()
    section = config.generator.model_copy(update={"emulate_s": 0.2})
    config, models = config.model_copy(update={"generator": section}), role_models
    emulated = make_generator(config, models, "generator/0", "learner")
    small, _ = emulated.generate(make_policy(0, 10), 4, 0, 1, False)
    large, _ = emulated.generate(make_policy(0, 10), 16, 1, 2, True)
    again, _ = emulated.generate(make_policy(0, 10), 4, 2, 3, True)
    np.testing.assert_array_equal(again, small)  # the odd size at the end of a dataset is not made anew each time
    first, _ = emulated.refine(large, make_policy(0, 20), 3, 4, 2)
    start = time.perf_counter()
    refreshed, report = emulated.refine(large, make_policy(0, 30), 4, 5, 4)
    assert 0.2 <= time.perf_counter() - start < 1.0
    np.testing.assert_array_equal(refreshed, first)
    origin = report.provenance
    assert (origin.block, origin.parent_block, origin.policy_version, origin.guidance) == (5, 4, 30, "emulated")


def test_refiners_are_never_emulated(role_config: Callable[..., Config], role_models: Models) -> None:
    tiny, models = role_config(), role_models
    section = tiny.generator.model_copy(update={"emulate_s": 0.3})
    config = tiny.model_copy(update={"generator": section})
    assert type(make_generator(config, models, "refiner/0", "learner")) is Generator
    assert type(make_generator(tiny, models, "generator/0", "learner")) is Generator
