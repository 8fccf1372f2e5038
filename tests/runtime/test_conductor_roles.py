"""The conductor's decisions on auditors, methods, strengths and refreshes, one by one."""

from __future__ import annotations

import pytest
from conductor_cases import kinds, made, make, only, start, warmed_up

from raydiff.runtime import messages as m
from raydiff.runtime.conductor import LEARNER, Conductor
from raydiff.runtime.steering import Steering
from raydiff.types import Agreement


def test_a_run_goes_on_without_auditors() -> None:
    conductor = make(audit={"count": 1})
    audit = only(m.Audit, warmed_up(conductor))
    assert conductor.on(m.WorkerGone(audit.worker)) == []
    assert conductor.workers["auditor"] == []
    train = next(call for call in conductor.in_flight.values() if isinstance(call, m.Train))
    generate = next(call for call in conductor.in_flight.values() if isinstance(call, m.Generate))
    ingest = only(m.Ingest, conductor.on(made(generate)))
    assert "Audit" not in kinds(conductor.on(m.Ingested(ingest.call)))
    assert not conductor.stalled()
    assert conductor.on(m.Audited(audit.call, 0.5)) == []  # an answer after all
    assert "Train" in kinds(conductor.on(m.Trained(train.call, 2)))


def test_a_block_waits_for_an_auditor_until_a_newer_one_lands() -> None:
    conductor = make(audit={"count": 1}, replay={"ahead": 2.0})
    for name in (LEARNER, "evaluator/0", "generator/0"):
        commands = conductor.on(m.WorkerUp(name))
    for _ in range(2):
        commands = conductor.on(made(only(m.Generate, commands)))
        landed = conductor.on(m.Ingested(only(m.Ingest, commands).call))
        commands = [c for c in [*commands, *landed] if isinstance(c, m.Generate)]
    assert only(m.Audit, conductor.on(m.WorkerUp("auditor/0"))).block == 2


def test_a_block_that_only_the_learner_has_is_not_audited() -> None:
    """One slot: what was to replace its block is lost on the way, and the store has forgotten that block by then."""
    conductor = make(audit={"count": 1}, replay={"lifetime": 1, "behind": 4.0})
    for name in (LEARNER, "evaluator/0", "generator/0"):
        commands = conductor.on(m.WorkerUp(name))
    ingest = only(m.Ingest, conductor.on(made(only(m.Generate, commands))))
    second = only(m.Generate, list(conductor.in_flight.values()))
    conductor.on(m.Ingested(ingest.call))
    ingest, forget = conductor.on(made(second))[:2]
    assert forget == m.Forget(1)
    conductor.on(m.BlockLost(ingest.call))
    assert set(conductor.catalogue.entries) == {1}
    assert "Audit" not in kinds(conductor.on(m.WorkerUp("auditor/0")))


@pytest.mark.parametrize(("method", "kind", "refines", "guided"), [
    ("pgd", "policy", True, [False, True]),
    ("pgd", "none", False, [False, False]),
    ("synther", "policy", False, [False, False]),
    ("pets", "none", False, [True, True]),
    ("dydiff", "none", True, [True, True]),
])  # fmt: skip
def test_what_methods_can_refresh_and_what_they_need_the_policy_for(
    method: str, kind: str, refines: bool, guided: list[bool]
) -> None:
    conductor = make(generator={"method": method, "refine_when_idle": True}, guidance={"kind": kind},
                     refiner={"count": 1}, replay={"behind": 8.0, "samples_per_insert": 4.0})  # fmt: skip
    assert bool(conductor.workers["refiner"]) == refines
    commands, seen, update = start(conductor), [], 0
    for _ in range(40):
        if not commands:
            break
        command = commands.pop(0)
        seen.append(command)
        match command:
            case m.Generate() | m.Refine():
                commands += conductor.on(made(command, version=update))
            case m.Ingest(call):
                commands += conductor.on(m.Ingested(call))
            case m.Train(call, _, updates):
                update += updates
                commands += conductor.on(m.Trained(call, update))
            case m.Evaluate(call):
                commands += conductor.on(m.Evaluated(call))
    assert [command.guided for command in seen if isinstance(command, m.Generate)][:2] == guided
    assert any(isinstance(command, m.Refine) for command in seen) == refines


class Halving:
    """A controller that halves its strength at each answer."""

    def __init__(self) -> None:
        self.strength = 8.0
        self.answers: list[tuple[float, ...]] = []

    def measured(self, strength: float, agreement: Agreement) -> None:
        self.strength /= 2
        self.answers.append((strength, agreement.log_likelihood))

    def audited(self, strength: float, error: float, unguided_error: float) -> None:
        self.answers.append((strength, error, unguided_error))

    def record(self) -> dict[str, float]:
        return {"strength": self.strength}


def steered(**sections: dict[str, object]) -> tuple[Conductor, Halving]:
    plain, controller = make(guidance={"automatic": True}, **sections), Halving()
    return Conductor(plain.config, "learner", controller), controller


def test_a_shard_keeps_its_strength_whoever_makes_it() -> None:
    conductor, controller = steered(generator={"count": 2}, replay={"ahead": 3.0})
    warm = next(c for c in start(conductor) if isinstance(c, m.Generate))
    assert (warm.guided, warm.strength) == (False, None)  # of the warm-up
    lost = next(c for c in conductor.in_flight.values() if c.worker == "generator/1")
    assert (lost.guided, lost.strength) == (True, 8.0)
    conductor.on(made(warm, log_likelihood=-3.0))
    assert controller.answers == []  # unguided
    other = next(c for c in conductor.in_flight.values() if c.worker == "generator/0")
    conductor.on(m.WorkerLost("generator/1"))
    again = only(m.Generate, conductor.on(made(other, log_likelihood=-2.0)))
    assert controller.answers == [(8.0, -2.0)]
    assert controller.strength == 4.0
    assert (again.shard, again.strength) == (lost.shard, 8.0)
    assert only(m.Generate, conductor.on(m.WorkerUp("generator/1"))).strength == 4.0


def test_an_unguided_block_is_audited_before_a_newer_guided_one() -> None:
    conductor, _ = steered(audit={"count": 1}, replay={"ahead": 2.0})
    for name in (LEARNER, "evaluator/0", "generator/0"):
        commands = conductor.on(m.WorkerUp(name))
    for _ in range(2):
        commands = conductor.on(made(only(m.Generate, commands)))
        landed = conductor.on(m.Ingested(only(m.Ingest, commands).call))
        commands = [c for c in [*commands, *landed] if isinstance(c, m.Generate)]
    first = only(m.Audit, conductor.on(m.WorkerUp("auditor/0")))
    assert (first.block, first.strength) == (1, 0.0)
    second = only(m.Audit, conductor.on(m.Audited(first.call, 0.25)))
    assert (second.block, second.strength) == (2, 8.0)


def test_errors_of_guided_blocks_are_held_against_those_of_unguided_ones() -> None:
    """By medians: single audits, the first and the last here, are noise."""
    controller = Halving()
    steering = Steering(controller)
    for error in (9.0, 0.2, 0.4):
        assert steering.wants_unguided
        steering.audited(0.0, error)
    steering.audited(None, 5.0)  # a refreshed block
    steering.audited(2.0, None)  # nothing could be replayed
    for strength, error in ((2.0, 0.5), (2.0, 0.7), (4.0, 0.6), (4.0, 0.8), (4.0, 90.0)):
        assert controller.answers == []
        steering.audited(strength, error)
    assert controller.answers == [(4.0, 0.7, 0.4)]
    steering.audited(4.0, 0.1)
    assert len(controller.answers) == 1  # the next verdict takes five audits of its own
    assert steering.record() == {"strength": 8.0, "unguided_error": 0.4}


def test_without_enough_unguided_blocks_no_error_is_held_against_the_strength() -> None:
    controller = Halving()
    steering = Steering(controller)
    for strength in (0.0, 0.0, *[4.0] * 10):
        steering.audited(strength, 100.0 * strength + 1.0)
    assert controller.answers == []
    assert steering.record() == {"strength": 8.0, "unguided_error": None}


def test_refreshed_blocks_are_made_with_the_strength_of_the_moment_and_do_not_answer() -> None:
    conductor, controller = steered(refiner={"count": 1}, replay={"behind": 4}, learner={"updates": 50})
    train = only(m.Train, warmed_up(conductor))
    refine = only(m.Refine, conductor.on(m.Trained(train.call, 2)))
    assert refine.strength == 8.0
    conductor.on(made(refine, version=2, log_likelihood=-1.0))
    assert controller.answers == []


def test_without_a_controller_the_strength_is_left_to_the_configuration() -> None:
    conductor = make(refiner={"count": 1}, replay={"behind": 4}, learner={"updates": 50})
    train = only(m.Train, warmed_up(conductor))
    refine = only(m.Refine, conductor.on(m.Trained(train.call, 2)))
    assert refine.strength is None
    assert all(c.strength is None for c in conductor.in_flight.values() if isinstance(c, m.Generate))
    assert conductor.steering.record() is None


def test_stale_blocks_beyond_the_share_are_dropped() -> None:
    conductor = make(refiner={"count": 1, "min_lag": 50, "fraction": 0.2}, replay={"max_lag": 2, "behind": 4})
    train = only(m.Train, warmed_up(conductor))
    generate = next(c for c in conductor.in_flight.values() if isinstance(c, m.Generate))
    conductor.on(m.Trained(train.call, 2))
    commands = conductor.on(made(generate))  # four trajectories of the eight generated: more than a fifth
    assert commands[0] == m.Forget(generate.block)
    assert conductor.discards["blocks: older than max_lag on arrival"] == 1
    assert "Refine" not in kinds(commands)


def test_the_oldest_of_what_is_overdue_comes_first() -> None:
    """A generator takes it before a new shard, although that one is allowed."""
    conductor = make(refiner={"count": 0, "min_lag": 2, "max_lag": 4}, replay={"behind": 9.0, "warmup": 8, "ahead": 2})
    commands = start(conductor)
    for _ in range(2):
        commands = conductor.on(made(only(m.Generate, commands)))
        conductor.on(m.Ingested(only(m.Ingest, commands).call))
    third = next(c for c in conductor.in_flight.values() if isinstance(c, m.Generate))
    for update in (2, 4):
        train = next(c for c in conductor.in_flight.values() if isinstance(c, m.Train))
        assert "Refine" not in kinds(conductor.on(m.Trained(train.call, update)))  # the only generator is at work
    refine = only(m.Refine, conductor.on(made(third, version=2)))
    assert (refine.worker, refine.parent) == ("generator/0", 1)
    refine = only(m.Refine, conductor.on(made(refine, version=4)))
    assert refine.parent == 2
    assert "Generate" in kinds(conductor.on(made(refine, version=4)))
