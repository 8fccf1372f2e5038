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
    emulated = make_generator(
        tiny.model_copy(update={"generator": section}), models.bundle, models.reward, "generator/0", "learner"
    )
    assert isinstance(emulated, EmulatedGenerator)
    real = Generator(tiny, models.bundle, models.reward, "generator/0", "learner")
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


def test_refiners_are_never_emulated(role_config: Callable[..., Config], role_models: Models) -> None:
    tiny, models = role_config(), role_models
    section = tiny.generator.model_copy(update={"emulate_s": 0.3})
    config = tiny.model_copy(update={"generator": section})
    assert type(make_generator(config, models.bundle, models.reward, "refiner/0", "learner")) is Generator
    assert type(make_generator(tiny, models.bundle, models.reward, "generator/0", "learner")) is Generator
