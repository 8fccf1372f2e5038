from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from raydiff.replay import table as table_module
from raydiff.replay.table import Table
from raydiff.types import Transitions

S, A = 3, 2
COLUMNS = 2 * S + A + 2


def constant(count: int, value: float) -> Transitions:
    return Transitions(
        observation=np.full((count, S), value, np.float32),
        action=np.full((count, A), value, np.float32),
        reward=np.full(count, value, np.float32),
        next_observation=np.full((count, S), value, np.float32),
        terminal=np.full(count, value, np.float32),
    )


def draw(table: Table, count: int = 4_000, slots: tuple[int, int] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    return table.gather(count, torch.Generator().manual_seed(0), slots)


def contents(table: Table) -> dict[float, int]:
    """Which values the table may be drawn from, with their policy versions."""
    records, versions = draw(table)
    assert bool((records == records[:, :1]).all())
    return dict(zip(records[:, 0].tolist(), versions.tolist(), strict=True))


def test_empty_table_says_so() -> None:
    table = Table(2, 4, S, A)
    assert len(table) == 0
    with pytest.raises(ValueError, match="the table is empty: nothing was ingested yet"):
        draw(table, 1)


def test_records_come_back_as_they_were_written_column_by_column() -> None:
    rng = np.random.default_rng(0)
    data = Transitions(*(rng.normal(size=shape).astype(np.float32) for shape in ((5, S), (5, A), 5, (5, S), 5)))
    table = Table.from_transitions(data)
    assert (len(table), table.columns) == (5, COLUMNS)
    records, versions = draw(table, 200)
    batch = table.split(records)
    rows = [int(np.flatnonzero(data.reward == reward)[0]) for reward in batch.reward.numpy()]
    assert set(rows) == set(range(5))
    for name in ("observation", "action", "reward", "next_observation", "terminal"):
        np.testing.assert_array_equal(getattr(batch, name).numpy(), getattr(data, name)[rows])
    assert not versions.any()
    assert batch.observation.data_ptr() == records.data_ptr()  # views, no copies


def test_split_keeps_leading_dimensions() -> None:
    batch = Table(1, 1, S, A).split(torch.zeros(7, 4, COLUMNS))
    assert [tuple(part.shape) for part in batch[:5]] == [(7, 4, S), (7, 4, A), (7, 4), (7, 4, S), (7, 4)]


def test_overwriting_a_slot_evicts_its_block_and_keeps_the_others() -> None:
    table = Table(3, 4, S, A)
    for slot in range(3):
        table.write(slot, constant(4, slot), policy_version=10 * slot)
    assert contents(table) == {0.0: 0, 1.0: 10, 2.0: 20}
    table.write(1, constant(4, 7.0), policy_version=70)
    assert contents(table) == {0.0: 0, 7.0: 70, 2.0: 20}
    assert len(table) == 12


@pytest.mark.parametrize(("counts", "live"), [((4, 2), 2), ((2, 4), 4), ((4, 0), 0), ((1, 1), 1)])
def test_blocks_with_fewer_rows_than_the_slot(counts: tuple[int, int], live: int) -> None:
    table = Table(2, 4, S, A)
    table.write(0, constant(3, 1.0), policy_version=1)
    for version, count in enumerate(counts, start=5):
        table.write(1, constant(count, version), policy_version=version)
    assert len(table) == 3 + live
    assert contents(table) == {1.0: 1} | ({6.0: 6} if live else {})


def test_draws_are_uniform_over_live_rows() -> None:
    table = Table(2, 100, S, A)
    table.write(0, constant(100, 0.0), policy_version=0)
    table.write(1, constant(25, 1.0), policy_version=0)
    records, _ = draw(table, 100_000)
    assert records[:, 0].mean().item() == pytest.approx(0.2, abs=5 * (0.2 * 0.8 / 100_000) ** 0.5)


def test_draws_follow_the_generator() -> None:
    table = Table.from_transitions(constant(50, 1.0))
    table.records[:, 0] = torch.arange(50.0)
    first, second, other = (table.gather(20, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_too_many_rows_are_refused() -> None:
    table = Table(1, 4, S, A)
    table.write(0, constant(4, 1.0), policy_version=1)
    with pytest.raises(ValueError, match="5 transitions do not fit a slot of 4"):
        table.write(0, constant(5, 2.0), policy_version=2)
    assert contents(table) == {1.0: 1}


@pytest.mark.parametrize("counts", [(4, 0, 2, 0, 3), (0, 0, 1, 4, 0), (4, 4, 4, 4, 4)])
def test_a_range_of_slots_is_drawn_from_alone(counts: tuple[int, ...]) -> None:
    table = Table(len(counts), 4, S, A)
    for slot, count in enumerate(counts):
        table.write(slot, constant(count, float(slot)), policy_version=slot)
    for first in range(len(counts)):
        for last in range(first + 1, len(counts) + 1):
            filled = {slot for slot in range(first, last) if counts[slot]}
            if filled:
                records, versions = draw(table, 500, (first, last))
                assert set(versions.tolist()) == filled
                assert bool((records == versions[:, None]).all())
            else:
                with pytest.raises(ValueError, match="empty"):
                    draw(table, 1, (first, last))


def test_the_other_half_may_be_written_slice_by_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    """At every point where the lock is free, the range drawn from holds its own rows and no others."""
    monkeypatch.setattr(table_module, "SLICE_ROWS", 2)
    table = Table(4, 6, S, A)
    for slot, count in enumerate((6, 2, 5, 6)):
        table.write(slot, constant(count, float(slot)), policy_version=slot)
    lock, found = table._lock, []

    class Watching:
        def __enter__(self) -> None:
            lock.acquire()

        def __exit__(self, *_: object) -> None:
            lock.release()
            if not inside:
                inside.append(True)
                found.append({half: set(draw(table, 300, half)[1].tolist()) for half in ((0, 2), (2, 4))})
                inside.clear()

    inside: list[bool] = []
    table._lock = Watching()
    table.write(1, constant(5, 9.0), policy_version=9)
    assert [seen[2, 4] for seen in found] == [{2, 3}] * len(found)
    assert [seen[0, 2] for seen in found] == [{0, 9}] * len(found)
    assert len(found) == 4
    found.clear()
    table.write(0, constant(3, 8.0), policy_version=8)
    assert [seen[0, 2] for seen in found] == [{0, 8, 9}, {0, 8, 9}, {8, 9}]


@pytest.mark.parametrize("slots", [1, 3])
def test_gather_beside_a_writer_sees_whole_records_with_their_version(
    slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records of version ``v`` hold ``v`` in every column; slices are small, so that a write takes many of them."""
    monkeypatch.setattr(table_module, "SLICE_ROWS", 16)
    rows, writes = 256, 120
    table = Table(slots, rows, S, A)
    for slot in range(slots):
        table.write(slot, constant(rows, 1.0), policy_version=1)
    failures: list[BaseException] = []

    def write() -> None:
        try:
            for version in range(2, writes):
                table.write(version % slots, constant(rows - version, version), policy_version=version)
        except ValueError as error:
            failures.append(error)

    writer = threading.Thread(target=write)
    generator = torch.Generator().manual_seed(0)
    writer.start()
    gathers, seen = 0, set()
    while writer.is_alive() or not gathers:
        records, versions = table.gather(512, generator)
        assert bool((records == versions[:, None]).all()), "a record is torn or has another block's version"
        seen.update(versions.tolist())
        gathers += 1
    writer.join()
    assert not failures
    assert len(seen) > 2, "the writer never ran beside a gather"
    assert set(contents(table).values()) == set(range(writes - slots, writes))


def test_single_slot_is_never_empty_while_it_is_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """At every point where the lock is free, a gather finds rows of the old block, the new one, or both."""
    monkeypatch.setattr(table_module, "SLICE_ROWS", 2)
    table = Table(1, 6, S, A)
    table.write(0, constant(6, 1.0), policy_version=1)
    lock, found = table._lock, []

    class Watching:
        def __enter__(self) -> None:
            lock.acquire()

        def __exit__(self, *_: object) -> None:
            lock.release()
            found.append(set(table.versions[table._live].tolist()))

    table._lock = Watching()
    table.write(0, constant(3, 2.0), policy_version=2)
    assert found == [{1, 2}, {1, 2}, {2}]
