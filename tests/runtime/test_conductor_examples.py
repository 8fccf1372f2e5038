"""The conductor's decisions one by one, in schedules small enough to follow by hand."""

from __future__ import annotations

import pytest
from conductor_cases import BATCH, ROWS, kinds, made, make, only, start, warmed_up

from raydiff.errors import RunFailed
from raydiff.runtime import messages as m
from raydiff.runtime.conductor import EMPTY_BLOCKS_IN_A_ROW, LEARNER, Conductor


def test_order_of_work_at_the_start() -> None:
    conductor = make(generator={"count": 2}, replay={"warmup": 8})
    assert conductor.on(m.WorkerUp(LEARNER)) == []
    assert conductor.why_learner_waits() == ("warm-up", "the warm-up has 0 of 8 trajectories")
    assert conductor.on(m.WorkerUp("evaluator/0")) == []
    first = only(m.Generate, conductor.on(m.WorkerUp("generator/0")))
    second = only(m.Generate, conductor.on(m.WorkerUp("generator/1")))
    assert (first.shard, second.shard) == (0, 1)
    assert (first.worker, second.worker) == ("generator/0", "generator/1")
    landing = conductor.on(made(second))
    assert kinds(landing) == ["Ingest", "Generate"]  # ahead of the ratio by one block
    assert (landing[0].block, landing[0].slot) == (second.block, 0)
    last = only(m.Ingest, conductor.on(made(first)))
    assert conductor.on(m.Ingested(landing[0].call)) == []  # half of the warm-up
    train, generate = conductor.on(m.Ingested(last.call))  # what the updates sample allows another insert
    assert train == m.Train(train.call, LEARNER, 2)
    assert generate == m.Generate(generate.call, "generator/0", 3, BATCH, True, generate.block)
    assert conductor.why_learner_waits() is None


@pytest.mark.parametrize(("kind", "warm", "expected"), [
    ("policy", False, [False, True]),
    ("policy", True, [True, True]),
    ("none", False, [False, False]),
    ("none", True, [False, False]),
])  # fmt: skip
def test_warm_up_is_unguided_unless_asked_for(kind: str, warm: bool, expected: list[bool]) -> None:
    conductor = make(guidance={"kind": kind}, replay={"warmup_guidance": warm})
    first = only(m.Generate, start(conductor))
    second = only(m.Generate, conductor.on(made(first)))
    assert [first.guided, second.guided] == expected


def test_evaluations_are_due_at_multiples_of_every() -> None:
    conductor = make(generator={"count": 0}, learner={"updates": 10, "chunk": 4}, evaluation={"every": 6})
    points, chunks, update = [], [], 0
    commands = start(conductor)
    while not conductor.finished:
        command = commands.pop(0)
        if isinstance(command, m.Train):
            chunks.append(command.updates)
            update += command.updates
            commands += conductor.on(m.Trained(command.call, update))
        else:
            points.append((conductor.update, command.final))
            commands += conductor.on(m.Evaluated(command.call))
    assert chunks == [4, 2, 4]  # a chunk ends where an evaluation is due
    assert [(p, f) for p, f in points if f] == [(10, True)]
    assert len(points) == 2


def test_evaluation_is_issued_with_the_update_that_makes_it_due() -> None:
    conductor = make(generator={"count": 0}, learner={"updates": 12, "chunk": 2, "in_flight": 2})
    start(conductor)
    assert kinds(conductor.on(m.Trained(1, 2))) == ["Train"]
    assert kinds(conductor.on(m.Trained(2, 4))) == ["Train", "Evaluate"]
    evaluate = next(c for c in conductor.in_flight.values() if isinstance(c, m.Evaluate))
    assert not evaluate.final
    lost = conductor.on(m.WorkerLost("evaluator/0"))
    assert lost == []
    again = only(m.Evaluate, conductor.on(m.WorkerUp("evaluator/0")))
    assert not again.final


def test_refresh_takes_the_block_whose_refresh_saves_most() -> None:
    conductor = make(refiner={"count": 1}, replay={"behind": 4}, learner={"updates": 50})
    commands = warmed_up(conductor)  # block 1 in slot 0, version 0; block 2 is on its way
    train = only(m.Train, commands)
    second = next(c for c in conductor.in_flight.values() if isinstance(c, m.Generate))
    commands = conductor.on(m.Trained(train.call, 2))
    refine = only(m.Refine, commands)  # block 1 is two updates old by now
    assert (refine.worker, refine.parent, refine.shard) == ("refiner/0", 1, second.shard + 1)
    commands = conductor.on(made(refine, version=2))
    assert kinds(commands)[:2] == ["Ingest", "Forget"]
    assert (commands[0].slot, commands[0].policy_version) == (0, 2)  # its parent's slot
    assert commands[1].block == 1
    assert conductor.limiter.inserted == 0  # a refresh is no insert
    assert conductor.refined == BATCH


def test_refreshed_block_whose_parent_has_left_is_dropped() -> None:
    conductor = make(refiner={"count": 1}, replay={"lifetime": 1, "behind": 4})
    commands = warmed_up(conductor)
    train = only(m.Train, commands)
    second = next(c for c in conductor.in_flight.values() if isinstance(c, m.Generate))
    refine = only(m.Refine, conductor.on(m.Trained(train.call, 2)))
    commands = conductor.on(made(second))  # takes the only slot
    assert kinds(commands)[:2] == ["Ingest", "Forget"]
    assert commands[1].block == refine.parent
    assert conductor.on(made(refine, version=2))[0] == m.Forget(refine.block)
    assert conductor.discards["refreshed blocks: parent had left"] == 1


def old_arrival(refiners: int) -> tuple[Conductor, m.Generate, list[m.Command]]:
    """A block for version 0 that arrives when the next updates may sample nothing older than version 2."""
    conductor = make(refiner={"count": refiners, "min_lag": 50}, replay={"max_lag": 2, "behind": 4})
    train = only(m.Train, warmed_up(conductor))
    generate = next(c for c in conductor.in_flight.values() if isinstance(c, m.Generate))
    conductor.on(m.Trained(train.call, 2))
    assert conductor.why_learner_waits()[0] == "max_lag"
    return conductor, generate, conductor.on(made(generate))


def test_block_too_old_on_arrival_goes_to_a_refiner() -> None:
    conductor, generate, commands = old_arrival(refiners=1)
    refine = only(m.Refine, commands)
    assert refine.parent == generate.block
    assert conductor.discards["blocks: older than max_lag on arrival"] == 0
    commands = conductor.on(made(refine, version=2))
    assert kinds(commands)[:2] == ["Forget", "Ingest"]
    assert (commands[0].block, commands[1].block) == (generate.block, refine.block)
    before = conductor.limiter.inserted
    conductor.on(m.Ingested(commands[1].call))
    assert conductor.limiter.inserted == before + ROWS  # it is the insert that the stale block would have been


def test_stale_block_waits_while_the_newest_policy_is_too_old_itself() -> None:
    conductor = make(refiner={"count": 1, "min_lag": 50}, replay={"max_lag": 2, "behind": 4, "lifetime": 1})
    train = only(m.Train, warmed_up(conductor))
    generate = next(c for c in conductor.in_flight.values() if isinstance(c, m.Generate))
    assert "Refine" not in kinds(conductor.on(made(generate)))  # two updates are under way and two come next
    assert only(m.Refine, conductor.on(m.Trained(train.call, 2))).parent == generate.block


def test_block_too_old_on_arrival_is_dropped_without_a_refiner() -> None:
    conductor, generate, commands = old_arrival(refiners=0)
    assert commands[0] == m.Forget(generate.block)
    assert conductor.discards["blocks: older than max_lag on arrival"] == 1
    assert only(m.Generate, commands).block != generate.block


def test_stale_blocks_are_dropped_with_the_last_refiner() -> None:
    conductor, generate, commands = old_arrival(refiners=1)
    assert "Refine" in kinds(commands)
    waiting = conductor.limiter.inserting
    commands = conductor.on(m.WorkerGone("refiner/0"))
    assert commands[0] == m.Forget(generate.block)
    assert conductor.discards["blocks: older than max_lag on arrival"] == 1
    assert conductor.limiter.inserting <= waiting


def test_renewal_stops_when_all_old_blocks_are_on_their_way_out() -> None:
    """The learner waits for ``max_lag``: one new block replaces the only slot, and no more are made until it lands."""
    conductor = make(replay={"max_lag": 2, "lifetime": 1, "behind": 8, "ahead": 0.1, "samples_per_insert": 2.0})
    train = only(m.Train, warmed_up(conductor))
    early = next(c for c in conductor.in_flight.values() if isinstance(c, m.Generate))
    assert "Generate" not in kinds(conductor.on(made(early)))  # too old by the time the updates are done: dropped
    renewal = only(m.Generate, conductor.on(m.Trained(train.call, 2)))
    commands = conductor.on(made(renewal, version=2))
    assert kinds(commands) == ["Ingest", "Forget"]
    assert kinds(conductor.on(m.Ingested(commands[0].call))) == ["Train"]


def test_lost_shard_is_made_again_by_whoever_is_free() -> None:
    conductor = make(generator={"count": 2}, replay={"warmup": 8})
    start(conductor)
    lost = next(c for c in conductor.in_flight.values() if c.worker == "generator/0")
    other = next(c for c in conductor.in_flight.values() if c.worker == "generator/1")
    assert conductor.on(m.WorkerLost("generator/0")) == []
    assert not conductor.stalled()
    commands = conductor.on(made(other))
    again = only(m.Generate, commands)
    assert (again.shard, again.guided) == (lost.shard, lost.guided)
    assert again.block != lost.block


def test_answer_of_a_call_given_up_with_its_worker_is_dropped() -> None:
    conductor = make()
    generate = only(m.Generate, start(conductor))
    conductor.on(m.WorkerLost("generator/0"))
    assert conductor.on(made(generate)) == [m.Forget(generate.block)]
    assert conductor.on(m.Evaluated(999)) == []
    assert only(m.Generate, conductor.on(m.WorkerUp("generator/0"))).shard == generate.shard


def test_empty_blocks_are_made_again_and_too_many_fail_the_run() -> None:
    conductor = make()
    generate = only(m.Generate, start(conductor))
    for _ in range(EMPTY_BLOCKS_IN_A_ROW - 1):
        forget, following = conductor.on(made(generate, trajectories=0, diverged=BATCH))
        assert forget == m.Forget(generate.block)
        assert following.shard == generate.shard + 1
        generate = following
    assert conductor.discards == {"blocks: empty": 19, "trajectories: diverged": 19 * BATCH}
    with pytest.raises(
        RunFailed, match=r"^20 blocks in a row came back empty \(diverged\): .*denoiser\.steps.*guidance"
    ):
        conductor.on(made(generate, trajectories=0, diverged=BATCH))


def test_one_good_block_ends_a_row_of_empty_ones() -> None:
    conductor = make(replay={"warmup": 8})
    generate = only(m.Generate, start(conductor))
    for turn in range(3 * EMPTY_BLOCKS_IN_A_ROW):
        count = BATCH if turn % EMPTY_BLOCKS_IN_A_ROW == EMPTY_BLOCKS_IN_A_ROW - 1 else 0
        commands = conductor.on(made(generate, trajectories=count))
        for ingest in [c for c in commands if isinstance(c, m.Ingest)]:
            commands += conductor.on(m.Ingested(ingest.call))
        following = [c for c in commands if isinstance(c, m.Generate)]
        if not following:
            return
        generate = following[0]
    assert conductor.empty_in_a_row < EMPTY_BLOCKS_IN_A_ROW


def test_last_worker_of_a_needed_role_gone_fails_the_run() -> None:
    for worker in ("generator/0", "evaluator/0"):
        conductor = make()
        start(conductor)
        with pytest.raises(RunFailed, match=f"{worker} was the last and died too often"):
            conductor.on(m.WorkerGone(worker))


def test_generators_are_not_needed_once_the_learner_is_done() -> None:
    conductor = make(learner={"updates": 2, "chunk": 2}, replay={"behind": 4})
    train = only(m.Train, warmed_up(conductor))
    evaluate = only(m.Evaluate, conductor.on(m.Trained(train.call, 2)))
    assert evaluate.final
    assert conductor.on(m.WorkerGone("generator/0")) == []
    conductor.on(m.Evaluated(evaluate.call))
    assert conductor.finished


def test_audit_of_the_block_that_landed_last() -> None:
    conductor = make(audit={"count": 1})
    audit = only(m.Audit, warmed_up(conductor))
    assert (audit.worker, audit.block, audit.refreshed) == ("auditor/0", 1, False)


def test_block_whose_refresh_came_back_empty_is_kept_and_refreshed_again() -> None:
    conductor = make(refiner={"count": 1}, replay={"behind": 4})
    train = only(m.Train, warmed_up(conductor))
    refine = only(m.Refine, conductor.on(m.Trained(train.call, 2)))
    commands = conductor.on(made(refine, version=2, trajectories=0))
    assert commands[0] == m.Forget(refine.block)
    again = only(m.Refine, commands)
    assert again.parent == refine.parent
    assert again.shard > refine.shard


def test_calls_ahead_are_shared_evenly() -> None:
    """Two calls ahead for each of three generators: the third shard does not queue up behind the first."""
    conductor = make(generator={"count": 3, "in_flight": 2}, replay={"warmup": 16})
    for name in ("generator/0", "generator/1", "generator/2"):
        conductor.up.add(name)
    workers = [command.worker for command in conductor.on(m.WorkerUp(LEARNER)) if isinstance(command, m.Generate)]
    assert [worker[-1] for worker in workers] == ["0", "1", "2", "0", "1"]  # the warm-up, and one ahead of the ratio


def test_real_data_stand_in_until_what_is_too_old_is_renewed() -> None:
    """A table of one block, which the learner outruns: it goes on without it, and the generator renews it."""
    conductor = make(replay={"lifetime": 1, "max_lag": 6, "shortage": "real", "samples_per_insert": 9.0})
    generate = only(m.Generate, start(conductor))
    train = only(m.Train, list(conductor.in_flight.values()))
    assert train.real_only  # nothing has landed yet
    ingest, ahead = conductor.on(made(generate))
    assert conductor.on(m.Ingested(ingest.call)) == []
    real_only = []
    for update in (2, 4, 6, 8):
        train = only(m.Train, conductor.on(m.Trained(train.call, update)))
        real_only.append(train.real_only)
    assert real_only == [False, False, True, True]  # a block of version 0 may serve up to update 6
    forget, renewal = conductor.on(made(ahead, version=0))
    assert forget == m.Forget(ahead.block)  # too old on arrival
    assert conductor.discards["blocks: older than max_lag on arrival"] == 1
    ingest = only(m.Ingest, conductor.on(made(renewal, version=8)))
    train = only(m.Train, conductor.on(m.Trained(train.call, 10)))
    assert train.real_only  # the old rows are there until the learner has the new ones
    conductor.on(m.Ingested(ingest.call))
    assert not only(m.Train, conductor.on(m.Trained(train.call, 12))).real_only
    assert conductor.real_only == 8
    assert conductor.why_learner_waits() is None
