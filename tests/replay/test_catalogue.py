from __future__ import annotations

from raydiff.replay.catalogue import Catalogue, Entry
from raydiff.types import Provenance


def origin(block: int, version: int = 0, parent: int | None = None) -> Provenance:
    return Provenance(block, "learner", "generator/0", block, 0, version, "", "policy", 1.0, 31, parent)


def place(catalogue: Catalogue, block: int, version: int = 0, parent: int | None = None) -> tuple[Entry, Entry | None]:
    entry, replaced = catalogue.place(origin(block, version, parent), transitions=8, trajectories=4)
    entry.landed = True
    return entry, replaced


def test_slots_are_filled_in_turn_and_the_oldest_block_leaves() -> None:
    catalogue = Catalogue(3)
    assert [place(catalogue, block)[0].slot for block in (1, 2, 3)] == [0, 1, 2]
    entry, replaced = place(catalogue, 4)
    assert entry.slot == 0
    assert replaced is not None
    assert replaced.provenance.block == 1
    assert sorted(catalogue.entries) == [2, 3, 4]
    assert catalogue.in_slot == {0: 4, 1: 2, 2: 3}


def test_refreshed_block_takes_the_slot_and_the_remaining_time_of_its_parent() -> None:
    catalogue = Catalogue(3)
    for block in (1, 2, 3):
        place(catalogue, block)
    remaining = catalogue.remaining(catalogue.entries[2])
    entry, replaced = place(catalogue, 10, version=5, parent=2)
    assert (entry.slot, replaced.provenance.block) == (1, 2)
    assert catalogue.remaining(entry) == remaining
    assert place(catalogue, 11)[1].provenance.block == 1  # the turn was not used up
    assert place(catalogue, 12)[1].provenance.block == 10


def test_block_whose_parent_is_not_here_takes_the_next_slot() -> None:
    catalogue = Catalogue(2)
    place(catalogue, 1)
    entry, replaced = place(catalogue, 7, parent=99)
    assert (entry.slot, replaced) == (1, None)


def test_remaining_counts_inserts_until_the_slot_is_overwritten() -> None:
    catalogue = Catalogue(3)
    for block in (1, 2, 3, 4):
        place(catalogue, block)
    for block in (2, 3, 4):
        expected = catalogue.remaining(catalogue.entries[block])
        trial = Catalogue(3, dict(catalogue.entries), dict(catalogue.in_slot), catalogue.cursor)
        inserts = 0
        while block in trial.entries:
            inserts += 1
            place(trial, 100 + inserts)
        assert inserts == expected


def test_single_slot() -> None:
    catalogue = Catalogue(1)
    place(catalogue, 1)
    assert catalogue.remaining(catalogue.entries[1]) == 1
    assert place(catalogue, 2)[1].provenance.block == 1


def test_oldest_version_counts_blocks_that_await_their_slot() -> None:
    catalogue = Catalogue(3)
    assert catalogue.oldest_version() is None
    place(catalogue, 1, version=30)
    catalogue.place(origin(2, version=10), 8, 4)
    assert not catalogue.entries[2].landed
    assert catalogue.oldest_version() == 10


def test_refresh_goes_where_lag_times_remaining_time_is_largest() -> None:
    catalogue = Catalogue(4)
    for block, version in ((1, 0), (2, 10), (3, 60), (4, 90)):
        place(catalogue, block, version)  # cursor back at slot 0: 1, 2, 3 and 4 inserts remain
    chosen = catalogue.to_refresh(100, min_lag=1)
    assert chosen is not None
    assert chosen.provenance.block == 2  # 100 * 1 < 90 * 2 > 40 * 3 > 10 * 4
    chosen.refining = True
    assert catalogue.to_refresh(100, min_lag=1).provenance.block == 3
    catalogue.entries[3].landed = False
    assert catalogue.to_refresh(100, min_lag=1).provenance.block == 1
    assert catalogue.to_refresh(100, min_lag=101) is None


def test_nothing_to_refresh_in_what_is_up_to_date() -> None:
    catalogue = Catalogue(2)
    assert catalogue.to_refresh(5, min_lag=1) is None
    place(catalogue, 1, version=5)
    assert catalogue.to_refresh(5, min_lag=1) is None


def test_the_oldest_is_that_of_the_oldest_policy_and_leaves_first_among_equals() -> None:
    catalogue = Catalogue(4)
    for block, version in ((1, 40), (2, 10), (3, 10), (4, 90)):
        place(catalogue, block, version)
    assert catalogue.oldest(100, 60).provenance.block == 2
    catalogue.entries[2].refining = True
    assert catalogue.oldest(100, 60).provenance.block == 3
    assert catalogue.oldest(100, 60, slots=(0, 2)).provenance.block == 1  # blocks 1 and 2 are there
    catalogue.entries[3].readable = False
    assert catalogue.oldest(100, 60).provenance.block == 1
    assert catalogue.oldest(100, 61) is None
