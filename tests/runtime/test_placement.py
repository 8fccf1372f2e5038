from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raydiff.config import Config
from raydiff.errors import UserError
from raydiff.presets import load_config, together
from raydiff.runtime.placement import (
    Cluster,
    Node,
    Placement,
    Shortage,
    Slot,
    arms_at_once,
    attempt,
    attempt_pretrainer,
    attempt_together,
    demands,
    units,
)
from raydiff.runtime.plan import check_devices
from raydiff.runtime.refusal import (
    PlacementRefused,
    check_placement,
    check_run,
    place,
    place_pretrainer,
    place_together,
)


def config(*overrides: str) -> Config:
    return load_config(None, overrides)


def cluster(*nodes: Node) -> Cluster:
    return Cluster(nodes, nodes[0].name)


def machine(cpus: float, gpus: int = 0) -> Cluster:
    node = Node("this machine", cpus, (1.0,) * gpus)
    return Cluster((node,), node.name, started_here=True)


def where(placement: Placement | Shortage) -> dict[str, str]:
    assert isinstance(placement, Placement)
    return {slot.worker: slot.node for slot in placement.slots}


def refusal_of(given: Config, on: Cluster) -> PlacementRefused | None:
    try:
        check_placement(given, on)
    except PlacementRefused as error:
        return error
    return None


def refused(given: Config, on: Cluster) -> PlacementRefused:
    error = refusal_of(given, on)
    assert error is not None
    return error


TWO = cluster(Node("a", 2), Node("b", 2))


def test_demands_in_the_order_of_the_start() -> None:
    rows = demands(config("generator.count=3", "refiner.count=2"))
    assert [(row.section, row.count) for row in rows] == [
        ("learner", 1), ("evaluation", 1), ("generator", 3), ("refiner", 2), ("audit", 1),
    ]  # fmt: skip
    assert [row.section for row in demands(config("generator.count=0"))] == ["learner", "evaluation"]
    assert [row.role for row in demands(config("refiner.count=0"))] == [
        "learner", "evaluator", "generator", "auditor",
    ]  # fmt: skip


def test_the_learner_stays_with_the_driver_and_generators_spread_by_what_is_free() -> None:
    nodes = where(attempt(config("generator.count=6", "generator.cpus=0.25", "learner.cpus=1"), TWO))
    assert nodes["learner/0"] == "a"
    made = [nodes[f"generator/{i}"] for i in range(6)]
    assert (made.count("a"), made.count("b")) == (2, 4)  # one CPU is free on a, two on b
    assert where(attempt(config("learner.cpus=4"), cluster(Node("a", 2), Node("b", 4))))["learner/0"] == "b"


def test_large_workers_that_come_late_still_find_room() -> None:
    given = config("learner.cpus=0", "generator.count=2", "generator.cpus=1", "refiner.count=1", "refiner.cpus=2")
    assert isinstance(attempt(given, TWO), Placement)  # spread over both nodes, the generators would leave 1 + 1


@pytest.mark.parametrize(("gpus", "fits"), [
    ("generator.gpus=0.4 generator.count=4", True),  # 0.4 + 0.4 on each
    ("generator.gpus=0.4 generator.count=5", False),  # 2.0 in all, but 0.2 and 0.2 are left
    ("generator.gpus=0.5 generator.count=4", True),
    ("generator.gpus=0.6 generator.count=2 refiner.gpus=0.4", True),
    ("generator.gpus=0.6 generator.count=3", False),
    ("learner.gpus=2 generator.gpus=0", True),
    ("learner.gpus=1 generator.gpus=1 generator.count=1", True),
    ("learner.gpus=0.1 generator.gpus=2 generator.count=1", False),  # two whole ones are wanted
])  # fmt: skip
def test_gpus_are_packed_one_by_one(gpus: str, fits: bool) -> None:
    given = config("generator.cpus=0", "refiner.cpus=0", *gpus.split())
    assert isinstance(attempt(given, cluster(Node("a", 4, (1.0, 1.0)))), Placement) == fits


def test_a_share_goes_to_the_gpu_that_it_fills_best() -> None:
    given = config("learner.gpus=0.5", "generator.gpus=0.3", "generator.count=1", "refiner.count=0")
    placement = attempt(given, cluster(Node("a", 4, (1.0, 0.9, 0.35))))
    assert isinstance(placement, Placement)
    assert placement.of("learner/0") == Slot("learner/0", "a", 1.0, ((1, 0.5),))
    assert placement.of("generator/0") == Slot("generator/0", "a", 0.25, ((2, 0.3),))


def test_the_example_of_the_requirements_is_refused_in_its_words() -> None:
    given = config("generator.gpus=0.4", "generator.count=5", "generator.cpus=0")
    error = refused(given, cluster(Node("A", 8, (1.0, 1.0))))
    assert "generator 5/5 needs 0.4 GPU; node A: GPU 0 has 0.2, GPU 1 has 0.2 left" in str(error)
    assert "ower generator.gpus to 0.33 or generator.count to 4, or add a node with " in str(error)
    assert error.changes == ("generator.gpus=0.33", "generator.count=4")


@pytest.mark.parametrize(("overrides", "on", "parts"), [
    (["generator.cpus=1", "generator.count=2", "refiner.count=0"], machine(2),
     ["This machine", "generator 2/2 needs 1 CPU; this machine has 0 of 2 CPU left", "generator.cpus to 0.5",
      "generator.count to 1", "cluster.cpus=3"]),
    (["generator.cpus=1"], machine(2), ["Lower generator.cpus to 0.37, or let Ray count 4 CPUs"]),  # the refiner, too
    (["learner.cpus=4"], machine(2), ["learner 1/1 needs 4 CPU", "2 of 2 CPU left", "learner.cpus to 1.25"]),
    (["refiner.count=9"], machine(3), ["refiner 7/9 needs 0.25 CPU", "0 of 3 CPU left", "refiner.count to 6"]),
    (["learner.gpus=1", "generator.gpus=0.5"], machine(8, 1),
     ["generator 1/2 needs 0.5 GPU", "GPU 0 has 0 left", "generator.gpus to 0"]),
    (["learner.gpus=0.5", "learner.device=cuda"], machine(8), ["learner 1/1 needs 0.5 GPU", "has no GPU"]),
    (["denoiser.cpus=16"], machine(8), ["pretrainer needs 16 CPU", "8 of 8 CPU left", "denoiser.cpus to 8",
                                        "cluster.cpus=16"]),
    (["denoiser.gpus=2"], machine(8, 1), ["pretrainer needs 2 GPU", "GPU 0 has 1 left", "denoiser.gpus to 1"]),
    (["learner.cpus=3"], TWO, ["The cluster", "learner 1/1 needs 3 CPU; node a has 2 of 2 CPU left; node b has 2",
                               "add a node with 3 CPU"]),
    (["generator.cpus=3", "generator.gpus=1"], cluster(Node("a", 2, (1.0,)), Node("b", 4)),
     ["needs 3 CPU and 1 GPU", "node a has 1 of 2 CPU left", "node b has no GPU"]),
])  # fmt: skip
def test_the_refusal_names_role_nodes_and_what_to_change(overrides: list[str], on: Cluster, parts: list[str]) -> None:
    text = str(refused(config(*overrides), on))
    for part in parts:
        assert part in text, text


def test_a_refusal_lists_a_few_nodes_only() -> None:
    text = str(refused(config("learner.cpus=8"), cluster(*(Node(f"n{i}", 2) for i in range(9)))))
    assert "node n3 has 2 of 2 CPU left; 5 more nodes have no more" in text
    assert "node n4" not in text


def test_what_others_hold_is_counted_and_said() -> None:
    busy = cluster(Node("a", 4, (0.3, 1.0), busy_cpus=3.5))
    assert "0.5 of 4 CPU left (3.5 held by other jobs)" in str(refused(config(), busy))
    check_placement(config("learner.gpus=1", "denoiser.gpus=0.5"), busy.idle())
    check_placement(config("learner.cpus=0.5", "denoiser.cpus=0.5", "generator.cpus=0", "refiner.cpus=0"), busy)
    two = config("learner.gpus=2", "learner.cpus=0", "denoiser.cpus=0.1", "generator.cpus=0", "refiner.cpus=0")
    assert refused(two, busy).changes == ("learner.gpus=1",)
    check_placement(two, busy.idle())


def test_what_just_fits_is_accepted() -> None:
    check_placement(config("generator.count=3", "refiner.count=1", "generator.cpus=0.25"), machine(2))
    check_placement(config("generator.count=10", "generator.cpus=0.1", "refiner.count=0"), machine(2))
    check_placement(config("generator.count=0", "denoiser.cpus=64", "denoiser.gpus=1"), machine(1))  # no model needed


@pytest.mark.parametrize("role", ["learner", "generator", "refiner", "denoiser"])
def test_gpu_device_without_a_share_is_refused(role: str) -> None:
    with pytest.raises(UserError, match=rf"{role}.device=cuda:0 but {role}.gpus=0"):
        place(config(f"{role}.device=cuda:0"), machine(8, 1))
    check_devices(config(f"{role}.device=cuda", f"{role}.gpus=0.25"))


def test_shares_and_devices_that_ray_cannot_give_are_refused() -> None:
    with pytest.raises(UserError, match=r"generator.gpus=1.5: Ray gives .* generator.gpus=1 or generator.gpus=2"):
        check_devices(config("generator.gpus=1.5"))
    with pytest.raises(UserError, match=r"smallest share that Ray counts"):
        check_devices(config("generator.gpus=0.00001"))
    with pytest.raises(UserError, match=r"learner.device=cuda:1: on Ray a worker sees its own GPUs only"):
        check_devices(config("learner.device=cuda:1", "learner.gpus=0.5"))
    check_devices(config("learner.device=cuda:1", "learner.gpus=2"))


def test_the_pretrainer_prefers_the_drivers_node() -> None:
    slot = place_pretrainer(config(), TWO)
    assert slot is not None
    assert slot.node == "a"
    away = place_pretrainer(config("denoiser.gpus=1"), cluster(Node("a", 8), Node("b", 8, (1.0,))))
    assert away == Slot("pretrainer", "b", 1.0, ((0, 1.0),))
    assert place_pretrainer(config("generator.count=0", "denoiser.cpus=99"), TWO) is None
    assert isinstance(attempt_pretrainer(config("denoiser.cpus=3"), TWO), Shortage)


def test_taken_slots_leave_less_room() -> None:
    first = attempt(config("generator.count=0"), TWO)
    assert isinstance(first, Placement)
    second = attempt(config("generator.count=0", "learner.cpus=2"), TWO, first.slots)
    assert where(second)["learner/0"] == "b"


def test_arms_run_beside_the_pretrainer_only_where_both_fit() -> None:
    def at_once(arms: list[Config], on: Cluster, pretraining: bool) -> int:
        return arms_at_once(arms, on, place_pretrainer(config(), on) if pretraining else None)

    arm = config("generator.count=0", "learner.cpus=1", "evaluation.cpus=0")
    assert [at_once([arm] * 3, machine(2), pretraining) for pretraining in (True, False)] == [1, 2]
    assert [at_once([arm] * 3, machine(4), pretraining) for pretraining in (True, False)] == [3, 3]
    assert [at_once([arm] * 4, TWO, pretraining) for pretraining in (True, False)] == [3, 4]
    greedy = config("generator.count=0", "learner.cpus=2")
    assert at_once([greedy], machine(2), pretraining=True) == 0  # it would wait for a CPU until its start had failed
    assert at_once([greedy], machine(2), pretraining=False) == 1
    assert at_once([greedy, arm], machine(5), pretraining=True) == 2
    assert at_once([], machine(2), pretraining=True) == 0


AMOUNTS = st.sampled_from([0.0, 0.1, 0.25, 0.33, 0.5, 0.7, 1.0, 2.0, 3.0])
NODES = st.lists(
    st.builds(
        Node,
        name=st.just(""),
        cpus=st.sampled_from([1.0, 2.0, 4.0, 8.0]),
        gpus=st.lists(st.sampled_from([1.0, 1.0, 0.6, 0.0]), max_size=3).map(tuple),
        busy_cpus=st.sampled_from([0.0, 0.0, 0.5]),
    ),
    min_size=1,
    max_size=4,
)


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[str], Cluster]:
    values = {"generator.count": draw(st.integers(0, 5)), "refiner.count": draw(st.integers(0, 3))}
    share = AMOUNTS if draw(st.booleans()) else st.just(0.0)  # without GPUs there is more that fits
    for section in ("learner", "evaluation", "generator", "refiner", "denoiser"):
        least = 0.1 if section == "denoiser" else 0.0
        values |= {f"{section}.cpus": max(least, draw(AMOUNTS)), f"{section}.gpus": draw(share)}
    values |= {"audit.count": draw(st.integers(0, 2)), "audit.cpus": draw(AMOUNTS)}
    nodes = tuple(replace(node, name=f"n{i}") for i, node in enumerate(draw(NODES)))
    return [f"{key}={value}" for key, value in values.items()], Cluster(nodes, "n0")


@settings(max_examples=150, deadline=None)
@given(situations())
def test_no_plan_exceeds_a_node_and_every_advice_works(situation: tuple[list[str], Cluster]) -> None:
    overrides, on = situation
    given = config(*overrides)
    refusal = refusal_of(given, on)
    if refusal is not None:
        assert refusal.node is not None
        # Where the pretrainer is short, the advice is about it alone; what comes after it is looked at next.
        check = place_pretrainer if "pretrainer" in str(refusal) else place
        for change in refusal.changes:
            assert check(config(*overrides, change), on)
        assert check(given, replace(on, nodes=(*on.nodes, refusal.node)))
        return
    used: defaultdict[str, int] = defaultdict(int)
    shares: defaultdict[tuple[str, int], int] = defaultdict(int)
    placement = place(given, on)
    for slot in placement.slots:
        used[slot.node] += units(slot.cpus)
        for number, share in slot.gpus:
            shares[slot.node, number] += units(share)
    for node in on.nodes:
        assert used[node.name] <= max(0, units(node.cpus) - units(node.busy_cpus))
        for number, free in enumerate(node.gpus):
            assert shares[node.name, number] <= units(free)
    wanted = {f"{row.role}/{i}": row for row in demands(given) for i in range(row.count)}
    assert placement.slots[0].worker == "learner/0"
    assert {slot.worker for slot in placement.slots} == set(wanted)
    for slot in placement.slots:
        row = wanted[slot.worker]
        assert slot.cpus == row.cpus
        assert sum(units(share) for _, share in slot.gpus) == units(row.gpus)
        assert row.gpus > 1 or len(slot.gpus) <= 1


SEVERAL = ("arms_together=true", "arms.iql={learner.algorithm: iql, generator.count: 3}", "arms.seed.seed=[1]")
"""Three learners: 1.75, 2 and 1.75 CPUs."""


def test_learners_that_run_together_are_placed_together() -> None:
    given = config(*SEVERAL)
    placement = place_together(given, cluster(Node("a", 4), Node("b", 2)))
    assert [slot.arm for slot in placement.slots if slot.worker == "learner/0"] == ["guided", "iql", "seed_1"]
    assert [slot.worker for slot in placement.slots[:3]] == ["learner/0"] * 3  # they start first
    assert [slot.node for slot in placement.slots[:3]] == ["a", "a", "a"]
    for name, arm in together(given).items():
        wanted = {f"{row.role}/{i}" for row in demands(arm) for i in range(row.count)}
        assert {slot.worker for slot in placement.arm(name).slots} == wanted
    made = [slot.node for slot in placement.slots if slot.worker.startswith("generator")]
    assert (made.count("a"), made.count("b")) == (2, 5)  # one CPU is free on a, two on b
    alone = place(config(), TWO)
    assert [replace(slot, arm="") for slot in place_together(config(), TWO).slots] == list(alone.slots)


def test_learners_go_elsewhere_where_the_others_need_their_room() -> None:
    given = config("learner.cpus=1", "generator.cpus=1", "generator.gpus=0.5", "generator.count=1", "refiner.count=0",
                   "arms_together=true", "arms.seed.seed=[1]")  # fmt: skip
    placement = place_together(given, cluster(Node("gpu", 2, (1.0,)), Node("second", 2)))
    nodes = {(slot.arm, slot.worker): slot.node for slot in placement.slots}
    assert {nodes[arm, "learner/0"] for arm in ("guided", "seed_1")} == {"second"}
    assert {nodes[arm, "generator/0"] for arm in ("guided", "seed_1")} == {"gpu"}


def test_what_does_not_fit_together_is_refused_with_who_needs_what() -> None:
    text = str(refused_run(config(*SEVERAL), cluster(Node("a", 2), Node("b", 3))))
    assert "The cluster cannot place every role of 3 arms together: generator 2/2 of seed_1 needs 0.25 CPU" in text
    assert "node a has 0 of 2 CPU left" in text
    assert "The arms need 5.5 CPU: guided 1.75 CPU, iql 2 CPU, seed_1 1.75 CPU." in text
    assert "Lower generator.cpus to 0.17 or generator.count to 1, or add a node with 1 CPU" in text
    assert "or run them one after the other with arms_together=false" in text
    here = refused_run(config(*SEVERAL), machine(2))
    assert "learner 1/1 of seed_1 needs 1 CPU; this machine has 0 of 2 CPU left" in str(here)
    assert {"cluster.cpus=6", "arms_together=false"} <= set(here.changes)
    check_run(config(*SEVERAL, "arms_together=false"), machine(2))


def test_the_advice_names_the_arm_that_has_the_setting() -> None:
    own = config("arms_together=true", "arms.seed.seed=[1]", "arms.iql.generator.count=3")
    error = refused_run(own, machine(5))
    assert "generator 3/3 of iql needs 0.25 CPU" in str(error)
    assert error.changes[:2] == ("generator.cpus=0.17", "arms.iql.generator.count=1")  # the first is the run's, for all
    nested = config("arms_together=true", "arms.iql.generator.count=5", "arms.iql.generator.cpus=0.5")
    changes = refused_run(nested, machine(5)).changes
    assert {"arms.iql.generator.cpus=0.4", "arms.iql.generator.count=4"} <= set(changes), changes


def refused_run(given: Config, on: Cluster) -> PlacementRefused:
    with pytest.raises(PlacementRefused) as error:
        check_run(given, on)
    return error.value


@settings(max_examples=30, deadline=None)
@given(situations(), st.integers(0, 3), st.sampled_from(["", "0.5", "1"]))
def test_no_joint_plan_exceeds_a_node_and_every_advice_works(
    situation: tuple[list[str], Cluster], generators: int, cpus: str
) -> None:
    overrides, on = situation
    several = [*overrides, "arms_together=true", "arms.seed.seed=[1]", f"arms.more.generator.count={1 + generators}"]
    several += [f"arms.more.learner.cpus={cpus}"] if cpus else []
    given = config(*several)
    refusal: PlacementRefused | None = None
    try:
        placement = place_together(given, on)
    except PlacementRefused as error:
        refusal = error
    if refusal is not None:
        for change in refusal.changes:
            place_together(config(*several, change), on)
        assert refusal.node is not None
        assert place_together(given, replace(on, nodes=(*on.nodes, refusal.node)))
        return
    used: defaultdict[str, int] = defaultdict(int)
    shares: defaultdict[tuple[str, int], int] = defaultdict(int)
    for slot in placement.slots:
        used[slot.node] += units(slot.cpus)
        for number, share in slot.gpus:
            shares[slot.node, number] += units(share)
    for node in on.nodes:
        assert used[node.name] <= max(0, units(node.cpus) - units(node.busy_cpus))
        for number, free in enumerate(node.gpus):
            assert shares[node.name, number] <= units(free)
    for name, arm in together(given).items():
        assert isinstance(attempt_together({name: arm}, on), Placement)  # what fits together fits alone
        assert len(placement.arm(name).slots) == sum(row.count for row in demands(arm))
