"""The catalogue against the ``d4rl`` package: its tables where it can be imported, its source where it cannot."""

from __future__ import annotations

import ast
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from raydiff.data.catalogue import REFERENCE_SCORES, UNSUPPORTED, catalogue, entry, entry_of_file
from raydiff.envs.registry import canonical, score_reference
from raydiff.errors import UserError

_MAZES = [f"{maze}{dense}" for maze in ("umaze", "medium", "large") for dense in ("", "-dense")]
# Without a score in d4rl.infos: their environments' registrations have it.
_SCORED_ELSEWHERE = {"ant-random-expert-v0", *(f"maze2d-eval-{maze}-v1" for maze in _MAZES)}
# Without an address in d4rl.infos either.
_LISTED_ELSEWHERE = {f"maze2d-{maze}-v0" for maze in _MAZES}


@pytest.fixture(scope="module")
def infos() -> ModuleType:
    os.environ["D4RL_SUPPRESS_IMPORT_ERROR"] = "1"
    import d4rl.infos

    return d4rl.infos


@pytest.fixture(scope="module")
def registrations(infos: ModuleType) -> dict[str, dict[str, Any]]:
    """The environments that d4rl registers by literal arguments, read from its source."""
    found: dict[str, dict[str, Any]] = {}
    for file in Path(infos.__file__).parent.glob("*/__init__.py"):
        constants: dict[str, Any] = {}
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                constants[node.targets[0].id] = _value(node.value, constants)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                arguments = {k.arg: _value(k.value, constants) for k in node.value.keywords}
                if isinstance(arguments.get("id"), str):
                    found[arguments["id"]] = arguments
    return found


def _value(node: ast.expr, constants: dict[str, Any]) -> Any:
    if isinstance(node, ast.Name):
        return constants.get(node.id)
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {key.value: _value(value, constants) for key, value in pairs if isinstance(key, ast.Constant)}
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def test_ids_are_those_of_d4rl(infos: ModuleType) -> None:
    assert {*catalogue(), *UNSUPPORTED} == {*infos.DATASET_URLS, *_LISTED_ELSEWHERE}
    assert not {*catalogue()} & {*UNSUPPORTED}


def test_addresses_are_those_of_d4rl(infos: ModuleType, registrations: dict[str, dict[str, Any]]) -> None:
    listed = {id: url for id, url in infos.DATASET_URLS.items() if id not in UNSUPPORTED}
    registered = {id: registrations[id]["kwargs"]["dataset_url"] for id in _LISTED_ELSEWHERE}
    assert {id: found.url for id, found in catalogue().items()} == listed | registered


def test_scores_are_those_of_d4rl(infos: ModuleType, registrations: dict[str, dict[str, Any]]) -> None:
    want = {id: (infos.REF_MIN_SCORE[id], infos.REF_MAX_SCORE[id]) for id in infos.REF_MIN_SCORE}
    for id in (*_SCORED_ELSEWHERE, *_LISTED_ELSEWHERE):
        assert id not in want
        want[id] = (registrations[id]["kwargs"]["ref_min_score"], registrations[id]["kwargs"]["ref_max_score"])
    have = {id: found.reference_scores for id, found in catalogue().items()}
    assert have == {id: scores for id, scores in want.items() if id not in UNSUPPORTED}
    assert {found.reference for found in catalogue().values()} == {*REFERENCE_SCORES}


def test_time_limits_are_those_of_d4rl(registrations: dict[str, dict[str, Any]]) -> None:
    registered = {id: registrations[id]["max_episode_steps"] for id in catalogue() if id in registrations}
    assert {catalogue()[id].family for id in registered} == {found.family for found in catalogue().values()}
    assert {id: catalogue()[id].max_episode_steps for id in registered} == registered


def test_evaluation_environments_exist_and_are_scored_alike() -> None:
    named = [found for found in catalogue().values() if found.environment]
    assert {found.family for found in named} == {"locomotion", "maze2d", "antmaze", "adroit", "kitchen"}
    for found in named:
        assert canonical(found.environment) == found.environment
        assert score_reference(found.environment) == found.reference


def test_file_names_tell_datasets_apart() -> None:
    assert len({found.file_name for found in catalogue().values()}) == len(catalogue())
    found = entry_of_file("hopper_medium_replay-v2.hdf5")
    assert found is not None
    assert found.id == "hopper-medium-replay-v2"
    assert entry_of_file("mine.hdf5") is None


@pytest.mark.parametrize(
    ("id", "observation_size", "action_size", "rows"),
    [
        ("halfcheetah-medium-v2", 17, 6, 1_000_000),
        ("walker2d-medium-replay-v2", 17, 6, 302_000),
        ("ant-random-expert-v0", 111, 8, 2_000_000),
        ("maze2d-large-dense-v1", 4, 2, 4_000_000),
        ("antmaze-medium-play-v2", 29, 8, 1_000_000),
        ("relocate-human-v1", 39, 30, 9_942),
        ("kitchen-mixed-v0", 60, 9, 136_950),
    ],
)
def test_sizes(id: str, observation_size: int, action_size: int, rows: int) -> None:
    found = entry(id)
    assert (found.observation_size, found.action_size, found.rows) == (observation_size, action_size, rows)


@pytest.mark.parametrize(
    ("id", "words"),
    [
        ("hopper-medium-v3", ["'hopper-medium-v3'", "hopper-medium-v2", "raydiff data list"]),
        ("Hopper_Medium-v2", ["hopper-medium-v2"]),
        ("zzz", ["no dataset 'zzz'.", "raydiff data list"]),
        ("carla-lane-v0", ["camera images"]),
        ("minigrid-fourrooms-v0", ["discrete"]),
    ],
)
def test_ids_that_cannot_be_used(id: str, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        entry(id)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)
