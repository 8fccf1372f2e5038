"""Which shards make up a dataset: independent of the number of generators, their order and their deaths."""

import random

import pytest

from raydiff.errors import RunFailed
from raydiff.synthesis.shards import EMPTY_IN_A_ROW, Shards

SIZES = [96, 100, 80, 100, 99, 60, 100, 100, 100, 100]


def run(wanted: int, workers: int, seed: int, done: dict[int, int] | None = None) -> list[int]:
    """Generators that finish in any order and sometimes die."""
    rng, shards, busy = random.Random(seed), Shards(wanted, 100, done or {}), list[int]()
    while shards.complete is None:
        while len(busy) < workers and (shard := shards.next()) is not None:
            busy.append(shard)
        assert busy, "nothing is being made and nothing may be issued"
        shard = busy.pop(rng.randrange(len(busy)))
        if rng.random() < 0.2:
            shards.lose(shard)
        else:
            shards.finish(shard, SIZES[shard])
    return shards.complete


@pytest.mark.parametrize("wanted", [1, 96, 97, 400, 550])
def test_the_dataset_does_not_depend_on_who_made_it(wanted: int) -> None:
    expected = run(wanted, 1, 0)
    assert sum(SIZES[shard] for shard in expected) >= wanted
    assert sum(SIZES[shard] for shard in expected[:-1]) < wanted
    for workers in (1, 2, 5):
        for seed in range(20):
            assert run(wanted, workers, seed) == expected


def test_what_is_done_is_not_made_again() -> None:
    shards = Shards(250, 100, {0: 96, 2: 80})
    assert shards.next() == 1
    assert shards.next() is None, "three shards are expected to be enough"
    shards.finish(1, 60)  # fewer than expected
    assert shards.complete is None
    assert shards.count == 96 + 60 + 80
    assert shards.next() == 3
    shards.lose(3)
    assert shards.next() == 3
    shards.finish(3, 100)
    assert shards.complete == [0, 1, 2, 3]


def test_a_model_that_makes_nothing_usable_ends_it() -> None:
    shards = Shards(10, 100, {})
    for shard in range(EMPTY_IN_A_ROW - 1):
        assert shards.next() == shard
        shards.finish(shard, 0)
    with pytest.raises(RunFailed, match="20 shards in a row came back empty"):
        shards.finish(EMPTY_IN_A_ROW - 1, 0)
