"""Who was busy when: interval arithmetic on the start and end times that workers put into their records.

An interval is a pair ``(start, end)`` in seconds since the epoch. The functions on records answer three questions of
a run: how much of the learning happened during generation, how long the learner waited, how long generators idled.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from raydiff.metrics import Record, select

Interval = tuple[float, float]

MOST_IDLE = 0.2  # from this share of idle generators on, nothing counts as overlapped
TOLERANCE = 0.1  # how far samples per insert may be from its target for learning to count as overlapped


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """Sorted, disjoint intervals that cover the same points; empty and reversed ones vanish."""
    merged: list[Interval] = []
    for start, end in sorted(pair for pair in intervals if pair[1] > pair[0]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def intersection(first: Iterable[Interval], second: Iterable[Interval]) -> list[Interval]:
    """The points that both sets of intervals cover, as sorted disjoint intervals."""
    a, b = union(first), union(second)
    common: list[Interval] = []
    i = j = 0
    while i < len(a) and j < len(b):
        start, end = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
        if end > start:
            common.append((start, end))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return common


def length(intervals: Iterable[Interval]) -> float:
    """Seconds that the intervals cover; what lies in several counts once."""
    return math.fsum(end - start for start, end in union(intervals))


def intersection_length(first: Iterable[Interval], second: Iterable[Interval]) -> float:
    """Seconds that both sets of intervals cover."""
    return length(intersection(first, second))


def overlap(train: Sequence[Interval], sampling: Sequence[Interval]) -> float:
    """Share of the training seconds during which at least one worker is sampling; 0 where nothing was trained."""
    busy = length(train)
    return intersection_length(train, sampling) / busy if busy > 0 else 0.0


def interval(record: Record) -> Interval | None:
    """``(time.start, time.end)`` of a record, or None where it carries no such pair."""
    time = record.get("time") or {}
    start, end = time.get("start"), time.get("end")
    return None if start is None or end is None else (float(start), float(end))


def intervals(records: Iterable[Record]) -> list[Interval]:
    """The intervals of all records that carry one."""
    return [pair for pair in map(interval, records) if pair is not None]


def keeps_ratio(record: Record, target: float) -> bool:
    """Whether samples per insert was within 10 % of its target when this train record was written.

    Both counts are cumulative, so this is the ratio since the warm-up and not that of the chunk alone.
    """
    sampled, inserted = record.get("synthetic_sampled"), record.get("synthetic_inserted")
    if not inserted or sampled is None:
        return False
    return abs(sampled / inserted / target - 1.0) <= TOLERANCE + 1e-9


def overlap_fraction(records: list[Record], arm: str, target: float | None) -> float | None:
    """Learner-busy seconds with a generator or refiner inside its sampler, over all learner-busy seconds.

    A chunk at whose end samples per insert was more than 10 % off ``target`` counts as not overlapped: learning that
    runs ahead of its data, or data that pile up, are not what the overlap is meant to praise. Nothing counts where
    the generators were idle for a fifth of the time or more. None where the arm has no timed train or block records.
    Schedules that pace by whole datasets have no ``target``: there, every overlap counts.
    """
    train, blocks = select(records, "train", arm), intervals(select(records, "block", arm))
    span = training_span(records, arm)
    busy = length(intervals(train))
    if busy <= 0 or not blocks or span is None:
        return None
    if target is None:
        return intersection_length(intervals(train), blocks) / busy
    idle = idle_fraction(records, arm, "generator", *span)
    if idle is not None and idle >= MOST_IDLE:
        return 0.0
    paced = intervals(record for record in train if keeps_ratio(record, target))
    return intersection_length(paced, blocks) / busy


def idle_fraction(records: list[Record], arm: str, prefix: str, start: float, end: float) -> float | None:
    """``1 - busy / (workers * (end - start))`` of the arm's workers whose names begin with ``prefix``.

    ``start`` and ``end`` are usually the first learner chunk's start and the last one's end. Workers are those with a
    block or a ``worker_up`` event, so one that never delivered counts as idle. None without workers or lifetime.
    """
    busy: dict[str, list[Interval]] = {}
    for record in select(records, "event", arm):
        if record.get("event") == "worker_up" and str(record.get("worker") or "").startswith(prefix):
            busy.setdefault(record["worker"], [])
    for record in select(records, "block", arm):
        worker, pair = str((record.get("time") or {}).get("worker") or ""), interval(record)
        if worker.startswith(prefix) and pair is not None:
            busy.setdefault(worker, []).append(pair)
    if not busy or end <= start:
        return None
    used = math.fsum(intersection_length(pairs, [(start, end)]) for pairs in busy.values())
    return 1.0 - used / (len(busy) * (end - start))


def training_span(records: list[Record], arm: str) -> Interval | None:
    """From the start of the arm's first learner chunk to the end of its last."""
    pairs = intervals(select(records, "train", arm))
    return (min(pair[0] for pair in pairs), max(pair[1] for pair in pairs)) if pairs else None


def learner_wait_fraction(records: list[Record], arm: str) -> float | None:
    """Seconds that the learner had no chunk, over its lifetime after the warm-up. None where nothing was trained.

    ``time.waited`` is the wait just before a chunk; that before the first chunk is the warm-up and lies outside.
    """
    span = training_span(records, arm)
    if span is None or span[1] <= span[0]:
        return None
    waits: list[Interval] = []
    for record in select(records, "train", arm):
        pair = interval(record)
        if pair is not None:
            waits.append((pair[0] - float(record["time"].get("waited") or 0.0), pair[0]))
    return intersection_length(waits, [span]) / (span[1] - span[0])
