"""Which worker goes to which node and GPU: packing by Ray's own rules, before anything starts.

Ray counts CPUs in one sum per node, but GPUs one by one: a share of 0.6 needs *one* GPU with 0.6 free, and goes to
the one that it fills best; two GPUs need two that are wholly free. Here is the same arithmetic, in Ray's own unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from raydiff.config import Config
from raydiff.runtime.team import SECTIONS, counts

RESOLUTION = 10_000  # Ray counts resources in ten-thousandths
DEVICE_SECTIONS = ("learner", "evaluation", "generator", "refiner", "denoiser")
PRETRAINER = "pretrainer"
ROLES = {section: role for role, section in SECTIONS.items()} | {"denoiser": PRETRAINER}


def units(amount: float) -> int:
    """An amount of a resource as Ray counts it."""
    return round(amount * RESOLUTION)


@dataclass(frozen=True)
class Node:
    """What a node has: ``cpus`` in all (Ray's logical ones), of which others hold ``busy_cpus``, and the free share of
    each GPU (1: nobody uses it). ``id`` is Ray's, where Ray runs."""

    name: str
    cpus: float
    gpus: tuple[float, ...] = ()
    object_store_mb: float | None = None
    busy_cpus: float = 0.0
    id: str = ""

    def idle(self) -> Node:
        """The same node with nobody on it."""
        return replace(self, busy_cpus=0.0, gpus=(1.0,) * len(self.gpus))


@dataclass(frozen=True)
class Cluster:
    """Nodes with names of their own; ``driver`` is the one that ``raydiff train`` runs on.

    ``started_here``: Ray is started for the run on this machine, with as many logical CPUs as the configuration wants.
    """

    nodes: tuple[Node, ...]
    driver: str
    started_here: bool = False

    def idle(self) -> Cluster:
        """The same cluster with nobody on it."""
        return replace(self, nodes=tuple(node.idle() for node in self.nodes))

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)


@dataclass(frozen=True)
class Demand:
    """What one worker of a section of the configuration asks of a node, and how many such workers there are; ``arm``
    says whose, where several learners are placed together."""

    section: str
    count: int
    cpus: float
    gpus: float
    arm: str = ""

    @property
    def role(self) -> str:
        """What its workers are called."""
        return ROLES[self.section]

    def needs(self) -> tuple[int, int]:
        """CPUs and GPUs in Ray's units."""
        return units(self.cpus), units(self.gpus)


@dataclass(frozen=True)
class Slot:
    """A worker (``generator/1``) on its node; ``gpus`` are the numbers of GPUs there with the share of each, ``arm``
    as in ``Demand``."""

    worker: str
    node: str
    cpus: float
    gpus: tuple[tuple[int, float], ...] = ()
    arm: str = ""


@dataclass(frozen=True)
class Placement:
    """Every worker of one learner, or of several together, in the order in which they must start for Ray to pack them
    alike."""

    slots: tuple[Slot, ...]

    def of(self, worker: str) -> Slot | None:
        return next((slot for slot in self.slots if slot.worker == worker), None)

    def arm(self, name: str) -> Placement:
        """The workers of one of the learners."""
        return Placement(tuple(slot for slot in self.slots if slot.arm == name))

    def nodes(self) -> set[str]:
        """Names of the nodes that have workers."""
        return {slot.node for slot in self.slots}


@dataclass(frozen=True)
class Shortage:
    """The worker that found no place (its ``number`` counts from 1), and what the nodes had left by then."""

    demand: Demand
    number: int
    left: Room
    placed: int = 0


def demands(config: Config, arm: str = "") -> list[Demand]:
    """The workers of one learner by section, in the order in which they start."""
    rows = [(SECTIONS[role], count) for role, count in counts(config).items() if count]
    return [
        # The simulators of audits run on CPUs, so that section has no GPUs.
        Demand(section, count, getattr(config, section).cpus, getattr(getattr(config, section), "gpus", 0.0), arm)
        for section, count in rows
    ]


def pretrainer_demand(config: Config) -> Demand:
    """The pretrainer, which runs before the others (beside arms that need no model)."""
    return Demand("denoiser", 1, config.denoiser.cpus, config.denoiser.gpus)


@dataclass
class Room:
    """What is left on each node, in Ray's units, while workers are placed one after the other."""

    cluster: Cluster
    cpus: dict[str, int] = field(default_factory=dict)
    gpus: dict[str, list[int]] = field(default_factory=dict)

    @staticmethod
    def of(cluster: Cluster, taken: Iterable[Slot] = ()) -> Room:
        """The room of a cluster without what the slots in ``taken`` hold."""
        room = Room(cluster)
        for node in cluster.nodes:
            room.cpus[node.name] = units(node.cpus) - units(node.busy_cpus)
            room.gpus[node.name] = [units(share) for share in node.gpus]
        for slot in taken:
            if slot.node in room.cpus:
                room.cpus[slot.node] -= units(slot.cpus)
                for number, share in slot.gpus:
                    room.gpus[slot.node][number] -= units(share)
        return room

    def copy(self) -> Room:
        return Room(self.cluster, dict(self.cpus), {name: list(gpus) for name, gpus in self.gpus.items()})

    def lacks(self, node: str, demand: Demand) -> list[str]:
        """Which of ``CPU`` and ``GPU`` the node is short of for one such worker."""
        cpus, gpus = demand.needs()
        short = ["CPU"] if cpus > max(0, self.cpus[node]) else []
        if gpus and not self._choose(node, gpus):
            short.append("GPU")
        return short

    def _choose(self, node: str, need: int) -> list[tuple[int, int]]:
        """The GPUs that Ray would take: the one that the share fills best, or the first that are wholly free."""
        free = self.gpus[node]
        if need >= RESOLUTION:
            whole = [number for number, left in enumerate(free) if left == RESOLUTION][: need // RESOLUTION]
            return [(number, RESOLUTION) for number in whole] if len(whole) == need // RESOLUTION else []
        fitting = [(left, number) for number, left in enumerate(free) if left >= need]
        return [(min(fitting)[1], need)] if fitting else []

    def take(self, worker: str, node: str, demand: Demand) -> Slot:
        """Put the worker on the node, which must have room for it."""
        cpus, gpus = demand.needs()
        chosen = self._choose(node, gpus) if gpus else []
        self.cpus[node] -= cpus
        for number, share in chosen:
            self.gpus[node][number] -= share
        gpus_of = tuple((number, share / RESOLUTION) for number, share in chosen)
        return Slot(worker, node, demand.cpus, gpus_of, demand.arm)

    def free(self, node: str, demand: Demand) -> int:
        """How much the node has left of what such a worker is after: GPUs if it wants any, else CPUs."""
        return sum(self.gpus[node]) if demand.gpus else max(0, self.cpus[node])


Chooser = Callable[[Room, Demand, list[str]], str]


def _spread(room: Room) -> Chooser:
    """Workers of a role are shared out in proportion to what the nodes had free when its first one came."""
    free: dict[tuple[str, str], int] = {}
    count: dict[tuple[str, str], int] = {}

    def choose(now: Room, demand: Demand, fitting: list[str]) -> str:
        for name in now.cpus:
            free.setdefault((demand.section, name), now.free(name, demand))

        def rank(name: str) -> tuple[float, int]:
            mine = count.get((demand.section, name), 0)
            return -free[demand.section, name] / (mine + 1), mine

        chosen = min(fitting, key=rank)
        count[demand.section, chosen] = count.get((demand.section, chosen), 0) + 1
        return chosen

    return choose


def _pack(room: Room) -> Chooser:
    """Each worker goes where least is left, so that large ones that come later find whole nodes."""
    return lambda now, demand, fitting: min(fitting, key=lambda name: (sum(now.gpus[name]), now.cpus[name]))


def attempt(config: Config, cluster: Cluster, taken: Iterable[Slot] = ()) -> Placement | Shortage:
    """Place every worker of one learner beside ``taken``, or say which one found no room."""
    return attempt_together({"": config}, cluster, taken)


def attempt_together(arms: Mapping[str, Config], cluster: Cluster, taken: Iterable[Slot] = ()) -> Placement | Shortage:
    """Place every worker of several learners beside ``taken``, or say which one found no room.

    The learners go to the driver's node as long as they fit there, the others are spread by what is free; where that
    does not work out, they are packed tightly, the largest first, and at last the learners go elsewhere.
    """
    room = Room.of(cluster, taken)
    rows = [demands(config, name) for name, config in arms.items()]
    learners = [own[0] for own in rows]
    workers = [(number, row) for own in rows for row in own[1:] for number in range(1, row.count + 1)]
    largest_first = sorted(workers, key=lambda item: (-item[1].gpus, -item[1].cpus))
    worst: Shortage | None = None
    for homes in _homes(room, learners):
        for order in (workers, largest_first):
            for rule in (_spread, _pack):
                result = _fill(room.copy(), learners, homes, order, rule)
                if isinstance(result, Placement):
                    return result
                worst = result if worst is None or result.placed > worst.placed else worst
    return worst if worst is not None else _homeless(room, learners)


def _homes(room: Room, learners: list[Demand]) -> Iterator[list[str]]:
    """Nodes for the learners: each as many as it can hold, the driver's or another first; then apart."""
    seen = set()
    names = [room.cluster.driver, *sorted(room.cpus, key=lambda name: -room.free(name, learners[0]))]
    for first in names:
        shape = (room.cpus[first], tuple(sorted(room.gpus[first])))
        homes = _settle(room, learners, lambda now, demand, first=first: (first, _freest(now, demand)))  # type: ignore[misc]
        if shape not in seen and homes and homes[0] == first:
            seen.add(shape)
            yield homes
    if len(learners) > 1 and (homes := _settle(room, learners, lambda now, demand: (_freest(now, demand),))):
        yield homes


def _settle(room: Room, learners: list[Demand], wish: Callable[[Room, Demand], Iterable[str]]) -> list[str]:
    """A node for each learner, the first of its wishes that has room; none where one of them finds no place."""
    now, homes = room.copy(), list[str]()
    for demand in learners:
        home = next((name for name in wish(now, demand) if not now.lacks(name, demand)), None)
        if home is None:
            return []
        homes.append(now.take("learner/0", home, demand).node)
    return homes


def _freest(room: Room, demand: Demand) -> str:
    """The node with the most left of what the worker is after, among those that can hold it if there are any."""
    return max(room.cpus, key=lambda name: (not room.lacks(name, demand), room.free(name, demand)))


def _homeless(room: Room, learners: list[Demand]) -> Shortage:
    """The first learner without a place, where those before it go wherever most is free."""
    room = room.copy()
    for number, demand in enumerate(learners):
        home = _freest(room, demand)
        if room.lacks(home, demand):
            return Shortage(demand, 1, room, number)
        room.take("learner/0", home, demand)
    raise AssertionError("every learner has a place")


def _fill(
    room: Room,
    learners: list[Demand],
    homes: list[str],
    workers: list[tuple[int, Demand]],
    rule: Callable[[Room], Chooser],
) -> Placement | Shortage:
    slots = [room.take("learner/0", home, demand) for home, demand in zip(homes, learners, strict=True)]
    choose = rule(room)
    for number, demand in workers:
        fitting = [name for name in room.cpus if not room.lacks(name, demand)]
        if not fitting:
            return Shortage(demand, number, room, len(slots))
        node = choose(room, demand, fitting)
        slots.append(room.take(f"{demand.role}/{number - 1}", node, demand))
    return Placement(tuple(slots))


def attempt_pretrainer(config: Config, cluster: Cluster, taken: Iterable[Slot] = ()) -> Slot | Shortage:
    """The pretrainer's place: the driver's node, whose cache may hold half the work, else where most is free."""
    room, demand = Room.of(cluster, taken), pretrainer_demand(config)
    names = [cluster.driver, *sorted(room.cpus, key=lambda name: -room.free(name, demand))]
    for name in names:
        if not room.lacks(name, demand):
            return room.take(PRETRAINER, name, demand)
    return Shortage(demand, 1, room)


def arms_at_once(arms: list[Config], cluster: Cluster, pretrainer: Slot | None) -> int:
    """How many of the arms (those without generators) may run side by side, beside the pretrainer if there is one.

    One may always run by itself; beside the pretrainer none may where there is no room, for its workers would wait
    for resources until their start counts as failed. Counted by copies of each arm, so that any of them may end first.
    """
    if not arms:
        return 0
    room = len(arms)
    for arm in arms:
        taken, copies = [pretrainer] if pretrainer is not None else [], 0
        while copies < room and isinstance(result := attempt(arm, cluster, taken), Placement):
            taken += result.slots
            copies += 1
        room = min(room, copies)
    return room if pretrainer is not None else max(1, room)
