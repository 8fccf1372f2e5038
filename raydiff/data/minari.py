"""Minari's datasets: those that are on this machine, and how one of them becomes a ``Dataset``.

Minari keeps actions in the environment's own units; here they are within ±1, as in ``raydiff.envs.registry``.
Observations that are dictionaries of a goal environment become one vector, as ``FlatGoal`` makes them. The data are
Minari's own, also under its namespace ``D4RL``: none is ever taken for one of D4RL's datasets.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from gymnasium.spaces import Box, Dict

from raydiff.data.dataset import Dataset
from raydiff.data.minari_spaces import read_spaces, to_unit
from raydiff.data.minari_storage import Rows, read_rows
from raydiff.envs.registry import FlatGoal
from raydiff.errors import UserError

OWN_KEY = "raydiff"
"""Where the metadata of an exported dataset keep what Minari has no place for."""

_ID = re.compile(r"(?:[-\w][-\w/]*[-\w]/)?[-\w]+-v\d+")
_ABOUT = ("dataset_id", "minari_version", "algorithm_name", "description", "code_permalink", "env_spec")


@dataclass(frozen=True)
class MinariEntry:
    """A dataset on this machine: its id, the environment's id ("" where it names none), and how much it holds."""

    id: str
    environment: str
    episodes: int
    steps: int


def minari_root() -> Path:
    """Minari's own folder of datasets: ``$MINARI_DATASETS_PATH``, else ``~/.minari/datasets``."""
    return Path(os.path.expanduser(os.environ.get("MINARI_DATASETS_PATH") or "~/.minari/datasets"))


def list_minari() -> list[MinariEntry]:
    """Every dataset on this machine, by id. One that cannot be read is left out with a warning."""
    found = []
    for id in sorted(_local_ids(minari_root())):
        try:
            about = _metadata(_folder(id))
        except UserError as error:
            warnings.warn(str(error), stacklevel=2)
            continue
        steps, episodes = int(about["total_steps"]), int(about["total_episodes"])
        found.append(MinariEntry(id, _environment(about), episodes, steps))
    return found


def minari_environment(id: str) -> str:
    """The id of the environment that a dataset was collected in, from its metadata alone; "" where it names none.

    ``UserError`` for a dataset that is not on this machine.
    """
    return _environment(_metadata(local_folder(id)))


def load_minari(id: str) -> Dataset:
    """Read a dataset on this machine whole into memory.

    The successor of every row is stored. ``terminal`` and ``timeout`` are Minari's terminations and truncations; an
    episode that ends in neither was cut, and is flagged as timed out so that nothing joins the next. ``UserError``
    for a dataset that is not here, and for one that is damaged or not of flat continuous observations and actions.
    """
    folder = local_folder(id)
    about = _metadata(folder)
    observation_space, action_space = read_spaces(folder, about, _environment(about))
    keys = FlatGoal.KEYS if isinstance(observation_space, Dict) else ()
    episodes = int(about["total_episodes"])
    if episodes < 1:
        raise UserError(f"{folder}: the dataset holds no episodes. Download or export it again.")
    rows = read_rows(folder / "data", str(about.get("data_format", "hdf5")), episodes, keys)
    size = sum(int(np.prod(observation_space[key].shape)) for key in keys) or observation_space.shape[0]
    for what, have, want in (
        ("observations", rows.observation.shape[1], size),
        ("actions", rows.action.shape[1], action_space.shape[0]),
    ):
        if have != want:
            raise UserError(f"{folder}: {what} have {have} columns, but the dataset's space has {want}. It is damaged.")
    return _dataset(id, folder, about, rows, action_space)


def _dataset(id: str, folder: Path, about: Mapping[str, Any], rows: Rows, action_space: Box) -> Dataset:
    for name, array in (("observations", rows.observation), ("actions", rows.action), ("rewards", rows.reward)):
        if not np.isfinite(array).all():
            raise UserError(f"{folder}: '{name}' has values that are NaN, infinite or too large for float32.")
    if not len(rows.reward):
        raise UserError(f"{folder}: the dataset holds no steps. Download or export it again.")
    following = np.cumsum(rows.lengths + 1)
    successor, own = np.ones((2, len(rows.observation)), dtype=bool)
    own[following - 1] = False
    successor[following - rows.lengths - 1] = False
    ends = np.cumsum(rows.lengths)[rows.lengths > 0] - 1
    timeout = rows.truncated
    timeout[ends] |= ~rows.terminated[ends]
    given = about.get(OWN_KEY) or {}
    limit = given.get("max_episode_steps") or _env_spec(about).get("max_episode_steps")
    return Dataset(
        observation=rows.observation[own],
        action=to_unit(rows.action, action_space),
        reward=rows.reward,
        terminal=rows.terminated,
        timeout=timeout,
        next_observation=rows.observation[successor],
        name=str(given.get("name") or id),
        path=str(folder),
        max_episode_steps=int(limit or rows.lengths.max()),
        environment=_environment(about),
        mujoco_version=str(given.get("mujoco_version") or _required_mujoco(about)),
        d4rl_id=str(given.get("d4rl_id", "")),
        metadata=_texts(about),
    )


# --------------------------------------------------------------------------------------------------- where datasets are


def local_folder(id: str) -> Path:
    """The folder of a dataset on this machine; ``UserError`` with the nearest ids and the command that brings it."""
    check_id(id)
    if (_folder(id) / "data").is_dir():
        return _folder(id)
    local = sorted(_local_ids(minari_root()))
    near = difflib.get_close_matches(id, local, n=3, cutoff=0.4)
    here = f"Near it are {', '.join(near)}" if near else "None of the datasets there is near it"
    raise UserError(
        f"There is no Minari dataset {id!r} in {minari_root()} (which MINARI_DATASETS_PATH sets). "
        f"{here if local else 'There are no datasets at all'}. Download it by: raydiff data download minari:{id}"
    )


def check_id(id: str) -> None:
    """Raise ``UserError`` unless ``id`` is formed as Minari wants it."""
    if not _ID.fullmatch(id) or "//" in id:
        raise UserError(
            f"{id!r} is no id of a Minari dataset. Ids are names with a version, below namespaces or not, such as "
            "mujoco/hopper/medium-v0 or D4RL/door/human-v2: letters, digits, - and _ only, and namespaces of two "
            "letters at least."
        )


def _folder(id: str) -> Path:
    return minari_root() / id


def _local_ids(root: Path, namespace: str = "") -> Iterator[str]:
    """As Minari finds them: folders that hold a folder ``data``; hidden ones do not count."""
    here = root / namespace
    if namespace and (here / "data").is_dir():
        yield namespace
    elif here.is_dir() and namespace.count("/") < 16:  # a loop of links must end
        for path in here.iterdir():
            if path.is_dir() and not path.name.startswith("."):
                yield from _local_ids(root, f"{namespace}/{path.name}".lstrip("/"))


# ---------------------------------------------------------------------------------------------------------- metadata


def _metadata(folder: Path) -> dict[str, Any]:
    path = folder / "data" / "metadata.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if not (isinstance(about, dict) and isinstance(about.get(OWN_KEY, {}), dict)):
            raise ValueError("not the expected tables")
        int(about["total_steps"]), int(about["total_episodes"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path}: the metadata of the dataset cannot be read ({error!r}). The dataset is damaged or incomplete; "
            f"remove {folder} and download or export it again."
        ) from error
    return about


def _env_spec(about: Mapping[str, Any]) -> dict[str, Any]:
    """Gymnasium's specification of the environment, which Minari keeps as a text of JSON; empty without one."""
    try:
        spec = json.loads(about.get("env_spec") or "{}")
    except (ValueError, TypeError):
        return {}
    return spec if isinstance(spec, dict) else {}


def _environment(about: Mapping[str, Any]) -> str:
    return str((about.get(OWN_KEY) or {}).get("environment") or _env_spec(about).get("id") or "")


def _required_mujoco(about: Mapping[str, Any]) -> str:
    """The MuJoCo that the dataset asks for in its requirements, where it is one release."""
    for requirement in about.get("requirements") or ():
        match = re.fullmatch(r"mujoco\s*==\s*([\w.]+)", str(requirement).strip())
        if match:
            return match[1]
    return ""


def _texts(about: Mapping[str, Any]) -> dict[str, str]:
    own = (about.get(OWN_KEY) or {}).get("metadata") or {}
    algorithm = {"algorithm": about["algorithm_name"]} if about.get("algorithm_name") else {}
    return {key: str(value) for key, value in (own | algorithm | {k: about[k] for k in _ABOUT if about.get(k)}).items()}


# ---------------------------------------------------------------------------------------------------------- download


def download_minari(id: str) -> Path:
    """The folder of a dataset, downloaded by Minari's own downloader if it is not there yet.

    It comes from Minari's server, or the one that ``MINARI_REMOTE`` names, with the datasets that it combines. It
    takes its place when it is complete; an interrupted transfer goes on where it ended. What is in the way is a
    ``UserError``: no package ``minari``, no network, no such dataset.
    """
    check_id(id)
    root = minari_root()
    if (root / id / "data").is_dir():
        return root / id
    arriving = root / f".download-{id.replace('/', '--')}"
    try:
        arriving.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{arriving}.lock", timeout=0):
            _transfer(id, arriving)
            for name in _local_ids(arriving):
                _keep(arriving, root, name)
        shutil.rmtree(arriving, ignore_errors=True)
        Path(f"{arriving}.lock").unlink(missing_ok=True)
    except Timeout:
        raise UserError(f"minari:{id} is being downloaded by another process; wait until it is done.") from None
    except OSError as error:
        raise UserError(
            f"{root}: the dataset cannot be kept there ({error.strerror or error}). Set MINARI_DATASETS_PATH to a "
            "folder with write permission and free space."
        ) from error
    return local_folder(id)


def _transfer(id: str, arriving: Path) -> None:
    try:
        import minari

        # Forced, because Minari takes what is there of an interrupted transfer for the whole.
        with _minari_root(arriving), redirect_stdout(sys.stderr):
            minari.download_dataset(id, force_download=True)
    except ImportError as error:
        raise UserError(
            f"Downloading from Minari needs its own package, which cannot be imported ({error}). Install it by: "
            f"pip install 'raydiff[minari]' (reading datasets that are here needs nothing more)."
        ) from error
    except Exception as error:  # every remote has a client library with exceptions of its own
        raise UserError(
            f"minari:{id} cannot be downloaded from {os.environ.get('MINARI_REMOTE') or 'hf://farama-minari'}: "
            f"{' '.join(str(error).split()).rstrip('.') or type(error).__name__}. Check the id and the network and try again, "
            f"which goes on where this ended; or bring the folder {id} by other means into {minari_root()}."
        ) from error


@contextmanager
def _minari_root(folder: Path) -> Iterator[None]:
    """Minari's folder of datasets, elsewhere for a while: it asks this variable at every call."""
    previous = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    try:
        yield
    finally:
        if previous is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = previous


def _keep(arriving: Path, root: Path, id: str) -> None:
    """Move a complete dataset to its place, with what Minari keeps about the namespaces above it."""
    _metadata(arriving / id)
    (root / id).parent.mkdir(parents=True, exist_ok=True)
    for namespace in Path(id).parents[:-1]:
        about = arriving / namespace / "namespace_metadata.json"
        if about.is_file() and not (root / namespace / about.name).exists():
            os.replace(about, root / namespace / about.name)
    if not (root / id).exists():
        os.replace(arriving / id, root / id)
