"""D4RL's datasets: where they lie, what is in them, and the returns that its scores are measured by.

Built from small tables rather than listed, since names and files follow rules; the tests compare every id, address
and score with the ``d4rl`` package. Two of its families cannot be learnt from here and are refused with the reason.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from raydiff.errors import UserError

BASE_URL = "http://rail.eecs.berkeley.edu/datasets/offline_rl"

# Undiscounted returns of D4RL's random policy and of its expert, (R_min, R_max): the same for every version of the
# data unless the key says otherwise. maze2d's experts are its controllers, so that a score may exceed 100.
REFERENCE_SCORES: dict[str, tuple[float, float]] = {
    "hopper": (-20.272305, 3234.3),
    "halfcheetah": (-280.178953, 12135.0),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
    "maze2d-open": (0.01, 20.66),
    "maze2d-open-dense": (11.17817, 27.166538620695782),
    "maze2d-umaze": (23.85, 161.86),
    "maze2d-umaze-dense": (68.537689, 193.66285642381482),
    "maze2d-medium": (13.13, 277.39),
    "maze2d-medium-dense": (44.264742, 297.4552547777125),
    "maze2d-large": (6.7, 273.99),
    "maze2d-large-dense": (30.569041, 303.4857382709002),
    "maze2d-umaze-v0": (0.94, 62.6),
    "maze2d-umaze-dense-v0": (23.249793, 81.78995240126592),
    "maze2d-medium-v0": (5.77, 85.14),
    "maze2d-medium-dense-v0": (19.477620, 96.03474232952358),
    "maze2d-large-v0": (4.83, 191.99),
    "maze2d-large-dense-v0": (27.388310, 215.09965671563742),
    "maze2d-eval-umaze": (36.63, 141.4),
    "maze2d-eval-umaze-dense": (56.95455, 178.21373133248397),
    "maze2d-eval-medium": (13.07, 204.93),
    "maze2d-eval-medium-dense": (42.28578, 235.5658957482388),
    "maze2d-eval-large": (16.4, 302.22),
    "maze2d-eval-large-dense": (56.95455, 326.09647655082637),
    "antmaze": (0.0, 1.0),
    "pen": (96.262799, 3076.8331017826877),
    "hammer": (-274.856578, 12794.134825156867),
    "door": (-56.512833, 2880.5693087298737),
    "relocate": (-6.425911, 4233.877797728884),
    "kitchen": (0.0, 4.0),
    "flow-ring": (-165.22, 24.42),
    "flow-merge": (118.67993, 330.03179),
    "bullet-hopper": (20.058972, 1441.8059623430963),
    "bullet-halfcheetah": (-1275.766996, 2381.6725),
    "bullet-walker2d": (16.523877, 1623.6476303317536),
    "bullet-ant": (373.705955, 2650.495),
    "bullet-maze2d-open": (8.75, 64.15),
    "bullet-maze2d-umaze": (32.46, 153.99),
    "bullet-maze2d-medium": (14.87, 238.05),
    "bullet-maze2d-large": (1.82, 285.92),
}

_IMAGES = "its observations are camera images, flattened to 6,912 pixels, and raydiff models states"
_DISCRETE = "its actions are discrete, and raydiff learns continuous control"
UNSUPPORTED: dict[str, str] = {
    "carla-lane-v0": _IMAGES,
    "carla-town-v0": _IMAGES,
    "carla-town-full-v0": _IMAGES,
    "minigrid-fourrooms-v0": _DISCRETE,
    "minigrid-fourrooms-random-v0": _DISCRETE,
}
"""D4RL's ids that are no use here, and why."""


@dataclass(frozen=True)
class CatalogueEntry:
    """One dataset of D4RL. ``location`` is its address below the server's base, ``environment`` the id that policies
    are evaluated in (empty where raydiff has none), ``reference`` its key in ``REFERENCE_SCORES``, and ``rows`` the
    size that D4RL's publications name (arXiv:2004.07219), often rounded, or ``None``.
    """

    id: str
    family: str
    location: str
    environment: str
    reference: str
    max_episode_steps: int
    observation_size: int
    action_size: int
    rows: int | None = None

    @property
    def url(self) -> str:
        """The address on D4RL's own server."""
        return f"{BASE_URL}/{self.location}"

    @property
    def file_name(self) -> str:
        """The name that D4RL keeps the file by."""
        return self.location.rpartition("/")[2]

    @property
    def reference_scores(self) -> tuple[float, float]:
        """Returns of the random policy and of the expert."""
        return REFERENCE_SCORES[self.reference]


def entry(name: str) -> CatalogueEntry:
    """The dataset of an id. Raises ``UserError`` naming the nearest ids where there is none."""
    found = catalogue().get(name)
    if found is not None:
        return found
    if name in UNSUPPORTED:
        raise UserError(f"{name} is a dataset of D4RL, but {UNSUPPORTED[name]}. Choose another; raydiff data list.")
    near = difflib.get_close_matches(name.lower(), catalogue(), n=3, cutoff=0.5)
    raise UserError(
        f"D4RL has no dataset {name!r}.{' Near are ' + ', '.join(near) + '.' if near else ''} raydiff data list shows "
        f"all of them; a file of your own is given by its path."
    )


def entry_of_file(file_name: str) -> CatalogueEntry | None:
    """The dataset that D4RL keeps under this file name, if any."""
    return _by_file().get(file_name)


@cache
def catalogue() -> dict[str, CatalogueEntry]:
    """All datasets by id, family after family."""
    families = (_locomotion(), _maze2d(), _antmaze(), _adroit(), _kitchen(), _flow(), _bullet())
    return {found.id: found for family in families for found in family}


@cache
def _by_file() -> dict[str, CatalogueEntry]:
    return {found.file_name: found for found in catalogue().values()}


# Agent -> evaluation environment, observation and action size. D4RL's ant observations end in 84 contact forces that
# are zero throughout (Farama-Foundation/D4RL#143), which no Gymnasium version gives; ant-v2 here does.
_AGENTS = {
    "hopper": ("Hopper-v4", 11, 3),
    "halfcheetah": ("HalfCheetah-v4", 17, 6),
    "walker2d": ("Walker2d-v4", 17, 6),
    "ant": ("ant-v2", 111, 8),
}
_REPLAY_ROWS = {
    ("hopper", "v0"): 200_920, ("halfcheetah", "v0"): 101_000, ("walker2d", "v0"): 100_930,
    ("hopper", "v2"): 402_000, ("halfcheetah", "v2"): 202_000, ("walker2d", "v2"): 302_000,
}  # fmt: skip
_LEVELS = ("random", "medium", "expert", "medium-replay", "full-replay", "medium-expert")


def _locomotion() -> Iterator[CatalogueEntry]:
    for version in ("v0", "v1", "v2"):
        for agent, (environment, observation_size, action_size) in _AGENTS.items():
            for level in _LEVELS:
                if version == "v0" and level == "full-replay":
                    if agent != "ant":
                        continue
                    level = "random-expert"
                rows: int | None = 1_000_000
                if level == "medium-replay":
                    rows = _REPLAY_ROWS.get((agent, version))
                elif level.endswith("-expert"):
                    rows = 2_000_000
                yield CatalogueEntry(
                    id=f"{agent}-{level}-{version}",
                    family="locomotion",
                    location=_locomotion_file(agent, level, version),
                    environment=environment,
                    reference=agent,
                    max_episode_steps=1000,
                    observation_size=observation_size,
                    action_size=action_size,
                    rows=rows,
                )


def _locomotion_file(agent: str, level: str, version: str) -> str:
    level = level.replace("-", "_")
    if version != "v0":
        return f"gym_mujoco_{version}/{agent}_{level}-{version}.hdf5"
    if level == "medium_replay":
        level = "mixed"
        agent = "walker" if agent == "walker2d" else agent
    return f"gym_mujoco/{agent}_{level}.hdf5"


# Version -> maze -> time limit in steps and rows of the file. The "eval" mazes have other layouts.
_MAZES: dict[str, dict[str, tuple[int, int | None]]] = {
    "v0": {
        "open": (150, 1_000_000),
        "umaze": (150, 1_000_000),
        "medium": (250, 1_000_000),
        "large": (600, 1_000_000),
    },
    "v1": {
        "umaze": (300, 1_000_000),
        "medium": (600, 2_000_000),
        "large": (800, 4_000_000),
        "eval-umaze": (300, None),
        "eval-medium": (600, None),
        "eval-large": (800, None),
    },
}


def _maze2d() -> Iterator[CatalogueEntry]:
    for version, mazes in _MAZES.items():
        for maze, (steps, rows) in mazes.items():
            for dense in ("", "-dense"):
                name = f"maze2d-{maze}{dense}"
                id = f"{name}-{version}"
                yield CatalogueEntry(
                    id=id,
                    family="maze2d",
                    location=f"maze2d/maze2d-{maze}{dense or '-sparse'}{'-v1' if version == 'v1' else ''}.hdf5",
                    environment=id if version == "v1" and not maze.startswith("eval-") else "",
                    reference=id if id in REFERENCE_SCORES else name,
                    max_episode_steps=steps,
                    observation_size=4,
                    action_size=2,
                    rows=rows,
                )


# Task -> the maze in its file's name, whether it starts in many places, whether it has many goals.
_ANTMAZES = {
    "umaze": ("u-maze", False, False),
    "umaze-diverse": ("u-maze", True, True),
    "medium-play": ("big-maze", True, False),
    "medium-diverse": ("big-maze", True, True),
    "large-play": ("hardest-maze", True, False),
    "large-diverse": ("hardest-maze", True, True),
}


def _antmaze() -> Iterator[CatalogueEntry]:
    for version, folder, suffix in (("v0", "ant_maze_new", ""), ("v2", "ant_maze_v2", "_fixed")):
        for task, (maze, starts, goals) in _ANTMAZES.items():
            file = f"Ant_maze_{maze}_noisy_multistart_{starts}_multigoal_{goals}_sparse{suffix}.hdf5"
            yield CatalogueEntry(
                id=f"antmaze-{task}-{version}",
                family="antmaze",
                location=f"{folder}/{file}",
                environment=f"antmaze-{task}-v2",
                reference="antmaze",
                max_episode_steps=700 if maze == "u-maze" else 1000,
                observation_size=29,
                action_size=8,
                rows=1_000_000,
            )


# Task -> time limit, observation size, action size, rows of the human demonstrations, rows of the other two files.
_HANDS = {
    "pen": (100, 45, 24, 5_000, 500_000),
    "hammer": (200, 46, 26, 11_310, 1_000_000),
    "door": (200, 39, 28, 6_729, 1_000_000),
    "relocate": (200, 39, 30, 9_942, 1_000_000),
}
_HAND_FILES = {"human": "{}-v0_demos_clipped", "cloned": "{}-demos-v0-bc-combined", "expert": "{}-v0_expert_clipped"}


def _adroit() -> Iterator[CatalogueEntry]:
    for version in ("v0", "v1"):
        for task, (steps, observation_size, action_size, human, others) in _HANDS.items():
            for level, old in _HAND_FILES.items():
                id = f"{task}-{level}-{version}"
                yield CatalogueEntry(
                    id=id,
                    family="adroit",
                    location=f"hand_dapg_v1/{id}.hdf5" if version == "v1" else f"hand_dapg/{old.format(task)}.hdf5",
                    environment=f"{task}-v1",
                    reference=task,
                    max_episode_steps=steps,
                    observation_size=observation_size,
                    action_size=action_size,
                    rows=human if level == "human" else others,
                )


def _kitchen() -> Iterator[CatalogueEntry]:
    for level, file, rows in (
        ("complete", "mini_kitchen_microwave_kettle_light_slider", 3_680),
        ("partial", "kitchen_microwave_kettle_light_slider", 136_950),
        ("mixed", "kitchen_microwave_kettle_bottomburner_light", 136_950),
    ):
        id = f"kitchen-{level}-v0"
        yield CatalogueEntry(id, "kitchen", f"kitchen/{file}-v0.hdf5", id, "kitchen", 280, 60, 9, rows)


def _flow() -> Iterator[CatalogueEntry]:
    for task, steps, observation_size, action_size in (("ring", 500, 3, 1), ("merge", 750, 25, 5)):
        for level, file in (("random", "random"), ("controller", "idm")):
            yield CatalogueEntry(
                id=f"flow-{task}-{level}-v0",
                family="flow",
                location=f"flow/flow-{task}-v0-{file}.hdf5",
                environment="",
                reference=f"flow-{task}",
                max_episode_steps=steps,
                observation_size=observation_size,
                action_size=action_size,
                rows=1_000_000,
            )


_BULLET_AGENTS = {"hopper": (15, 3), "halfcheetah": (26, 6), "walker2d": (22, 6), "ant": (28, 8)}
_BULLET_MAZES = {"open": 150, "umaze": 300, "medium": 600, "large": 800}


def _bullet() -> Iterator[CatalogueEntry]:
    """The same tasks in another simulator (PyBullet), which needs an older Gym than raydiff: data only."""
    for agent, sizes in _BULLET_AGENTS.items():
        for level in ("random", "medium", "expert", "medium-expert", "medium-replay"):
            file = f"bullet/bullet-{agent}_{level.replace('-', '_')}.hdf5"
            yield CatalogueEntry(f"bullet-{agent}-{level}-v0", "bullet", file, "", f"bullet-{agent}", 1000, *sizes)
    for maze, steps in _BULLET_MAZES.items():
        name = f"bullet-maze2d-{maze}"
        yield CatalogueEntry(f"{name}-v0", "bullet", f"bullet/{name}-sparse.hdf5", "", name, steps, 4, 2)
