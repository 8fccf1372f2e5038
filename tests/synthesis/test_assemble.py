"""Trajectories as D4RL's rows: every loader gives back exactly the generated transitions."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from raydiff.data.d4rl import read_d4rl
from raydiff.errors import UserError
from raydiff.replay.block import BlockReport
from raydiff.synthesis.assemble import assemble, episode_rows
from raydiff.synthesis.parts import Parts
from raydiff.types import Provenance, Trajectories

S, A, L = 3, 2, 5


def trajectories(n: int, seed: int = 0, terminals: bool = True) -> Trajectories:
    """Random rows in which about a third of the trajectories terminate somewhere, some in the closing row."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, L, S + A + 2)).astype(np.float32)
    rows[..., S : S + A] = rows[..., S : S + A].clip(-1, 1)
    rows[..., -1] = 0
    if terminals:
        for i in range(0, n, 3):
            rows[i, rng.integers(L) :, -1] = 1
    return Trajectories(rows, S, A)


def report(shard: int, data: Trajectories) -> BlockReport:
    origin = Provenance(shard, "generate", "generator/0", shard, 0, 7, "hash", "score_exact", 2.0, 31)
    return BlockReport(origin, len(data), int(data.valid().sum()))


def write(folder: Path, wanted: int) -> tuple[Path, list[Trajectories]]:
    parts, made = Parts(folder / "parts", {"seed": 0}), [trajectories(6, seed) for seed in range(3)]
    for shard, data in enumerate(made):
        parts.write(shard, data.rows, report(shard, data))
    assemble(folder / "all.hdf5", parts, [0, 1, 2], wanted, S, {"environment": "Hopper-v4"})
    return folder / "all.hdf5", made


def same(transitions: object, expected: list[Trajectories]) -> None:
    for name in ("observation", "action", "reward", "terminal"):
        whole = np.concatenate([getattr(data.transitions(), name) for data in expected])
        np.testing.assert_array_equal(getattr(transitions, name).astype(np.float32), whole, err_msg=name)
    going = np.concatenate([data.transitions().terminal for data in expected]) == 0
    after = np.concatenate([data.transitions().next_observation for data in expected])
    np.testing.assert_array_equal(transitions.next_observation[going], after[going])  # type: ignore[attr-defined]


def test_our_reader_gives_the_generated_transitions(tmp_path: Path) -> None:
    path, made = write(tmp_path, 10_000)
    same(read_d4rl(path).transitions("raydiff"), made)


def test_the_d4rl_package_gives_the_generated_transitions(tmp_path: Path) -> None:
    d4rl = pytest.importorskip("d4rl")
    path, made = write(tmp_path, 10_000)
    with h5py.File(path) as file:
        arrays = {name: file[name][()] for name in file if isinstance(file[name], h5py.Dataset)}
    found = d4rl.qlearning_dataset(SimpleNamespace(_max_episode_steps=1000), dataset=arrays)
    names = {"observation": "observations", "action": "actions", "reward": "rewards", "terminal": "terminals"}
    loaded = {name: found[key] for name, key in names.items()} | {"next_observation": found["next_observations"]}
    for name, values in loaded.items():  # the successors of terminals, too
        whole = np.concatenate([getattr(data.transitions(), name) for data in made])
        np.testing.assert_array_equal(np.asarray(values, dtype=np.float32), whole, err_msg=name)


def test_whole_trajectories_until_there_are_enough(tmp_path: Path) -> None:
    data = trajectories(6)
    lengths = data.valid().sum(axis=1)
    for wanted in (1, int(lengths[0]), int(lengths[0]) + 1, int(lengths.sum())):
        count = int((~episode_rows(data, wanted)["timeouts"]).sum())
        stop = int(np.searchsorted(np.cumsum(lengths), wanted)) + 1
        assert count == lengths[:stop].sum() >= wanted
    path, _ = write(tmp_path, int(lengths.sum()) + 1)
    with h5py.File(path) as file:
        assert set(file["infos/shard"][()]) == {0, 1}
        assert len(file["metadata/provenance"]) == 2
        assert b'"policy_version": 7' in file["metadata/provenance"][0]


def test_closing_rows_are_the_only_time_outs() -> None:
    rows = episode_rows(trajectories(4, terminals=False))
    assert rows["timeouts"].sum() == 4
    assert not rows["terminals"].any()
    assert not rows["actions"][rows["timeouts"]].any()
    assert len(rows["rewards"]) == 4 * L


def test_parts_of_another_generation_are_refused(tmp_path: Path) -> None:
    parts, data = Parts(tmp_path / "p", {"seed": 0, "guidance": {"strength": 2.0}}), trajectories(2)
    parts.write(3, data.rows, report(3, data))
    again = Parts(tmp_path / "p", {"seed": 0, "guidance": {"strength": 2.0}})
    assert again.known() == {3: report(3, data).transitions}
    np.testing.assert_array_equal(again.rows(3), data.rows)
    with pytest.raises(UserError, match=r"another generation \(different: guidance\).*--restart"):
        Parts(tmp_path / "p", {"seed": 0, "guidance": {"strength": 1.0}})
    assert Parts(tmp_path / "p", {"seed": 0, "guidance": {"strength": 1.0}}, restart=True).known() == {}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("")
    with pytest.raises(UserError, match="holds other files"):
        Parts(tmp_path / "other", {})


def test_a_damaged_part_is_made_again(tmp_path: Path) -> None:
    parts, data = Parts(tmp_path / "p", {}), trajectories(2)
    parts.write(0, data.rows, report(0, data))
    parts.write(1, data.rows, report(1, data))
    (tmp_path / "p" / "00000001.safetensors").write_bytes(b"cut short")
    assert list(parts.known()) == [0]
    parts.remove()
    assert not (tmp_path / "p").exists()
