from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydiff.data.convert import convert
from raydiff.data.d4rl import read_d4rl
from raydiff.errors import UserError

ROWS = 70_000  # More than one batch.


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("convert") / "source.hdf5"
    with h5py.File(path, "w") as file:
        file["observations"] = rng.normal(size=(ROWS, 5)).astype(np.float32)
        file["observations"][3, 2] = -0.0
        file["actions"] = rng.uniform(-1, 1, size=(ROWS, 2))
        file["rewards"] = rng.normal(size=(ROWS, 1))
        file["terminals"] = rng.random(ROWS) < 0.01
        file["timeouts"] = (rng.random(ROWS) < 0.01).astype(np.uint8)
        file["infos/qpos"] = np.full((ROWS, 2, 3), np.nan)
        file["infos/step"] = np.arange(ROWS, dtype=np.int16)
        file["infos/half"] = rng.normal(size=ROWS).astype(np.float16)
        file["infos/big"] = rng.normal(size=ROWS).astype(">f4")
        file["metadata/algorithm"] = "SAC – β"
        file["metadata/old"] = np.bytes_(b"TD3")
        file["metadata/names"] = ["a", "bc"]
        file["metadata/iteration"] = np.int32(3000)
        file["metadata/policy/fc0/weight"] = rng.normal(size=(4, 5)).astype(np.float32)
        file["metadata/nothing"] = h5py.Empty("f4")
        file["metadata/none"] = np.zeros((ROWS, 0))
        file.attrs.update({"environment": "Hopper-v4", "seed": np.int64(3), "bounds": np.array([-1.0, 1.0])})
        file["infos"].attrs["unit"] = "rad"
        file["actions"].attrs["space"] = "raw"
    return path


def _contents(path: Path) -> dict[str, object]:
    found: dict[str, object] = {}

    def visit(name: str, item: h5py.Dataset | h5py.Group) -> None:
        for key, value in item.attrs.items():
            found[f"{name}@{key}"] = np.asarray(value)
        if isinstance(item, h5py.Dataset):
            found[name] = (item.dtype, item[()])

    with h5py.File(path, "r") as file:
        visit("", file)
        file.visititems(visit)
    return found


def test_round_trip_loses_nothing(source: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    table = convert(source, tmp_path / "table.parquet", lambda *call: calls.append(call))
    assert calls == [(65_536, ROWS), (ROWS, ROWS)]
    back = convert(table, tmp_path / "folder" / "back.h5", lambda *call: calls.append(call))
    assert calls[-1] == (ROWS, ROWS)
    want, have = _contents(source), _contents(back)
    assert have.keys() == want.keys()
    for name, expected in want.items():
        found = have[name]
        if isinstance(expected, tuple) and isinstance(found, tuple):
            assert found[0].newbyteorder("=") == expected[0].newbyteorder("="), name
            expected, found = expected[1], found[1]
        if isinstance(expected, h5py.Empty):
            assert found == expected
        elif isinstance(expected, np.ndarray) and expected.dtype.kind == "f" and expected.size:
            native = expected.astype(expected.dtype.newbyteorder("="))
            assert isinstance(found, np.ndarray)
            assert found.shape == expected.shape
            assert found.tobytes() == native.tobytes(), name  # NaN and signed zero included.
        else:
            np.testing.assert_array_equal(found, expected)
    assert read_d4rl(back).sha256 == read_d4rl(source).sha256
    assert os.listdir(tmp_path / "folder") == ["back.h5"]


def test_table_is_one_row_per_transition(source: Path, tmp_path: Path) -> None:
    table = pq.read_table(convert(source, tmp_path / "table.parquet"))
    assert len(table) == ROWS
    assert table.schema.field("observations").type == pa.list_(pa.float32(), 5)
    assert table.schema.field("terminals").type == pa.bool_()
    with h5py.File(source, "r") as file:
        np.testing.assert_array_equal(table["observations"][69_000].as_py(), file["observations"][69_000])
        np.testing.assert_array_equal(table["infos/step"].to_numpy(), file["infos/step"][()])


def test_table_from_elsewhere(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32)
    columns = {
        "observations": pa.FixedSizeListArray.from_arrays(pa.array(np.repeat(values, 2)), 2),
        "actions": pa.FixedSizeListArray.from_arrays(pa.array(values), 1),
        "rewards": pa.array(values),
        "terminals": pa.array(values == 5),
    }
    pq.write_table(pa.table(columns), tmp_path / "table.parquet")
    dataset = read_d4rl(convert(tmp_path / "table.parquet", tmp_path / "back.hdf5"))
    np.testing.assert_array_equal(dataset.observation, np.stack([values, values], axis=1))
    assert np.flatnonzero(dataset.terminal).tolist() == [5]
    columns["observations"] = pa.array([[1.0], [2.0, 3.0], [], [], [], []])
    pq.write_table(pa.table(columns), tmp_path / "ragged.parquet")
    with pytest.raises(UserError, match="column 'observations' is of type list"):
        convert(tmp_path / "ragged.parquet", tmp_path / "ragged.hdf5")
    assert sorted(os.listdir(tmp_path)) == ["back.hdf5", "ragged.parquet", "table.parquet"]


def test_what_cannot_be_converted(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"one name must end in \.hdf5"):
        convert(source, tmp_path / "copy.hdf5")
    with pytest.raises(UserError, match=r"one name must end in \.hdf5"):
        convert(source, tmp_path / "table.csv")
    with pytest.raises(UserError, match="does not exist"):
        convert(tmp_path / "absent.hdf5", tmp_path / "table.parquet")
    with pytest.raises(UserError, match="no such file"):
        convert(tmp_path / "absent.parquet", tmp_path / "back.hdf5")
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        convert(tmp_path / "text.parquet", tmp_path / "back.hdf5")
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["states"] = np.zeros((3, 2))
    with pytest.raises(UserError, match="no array 'observations'"):
        convert(tmp_path / "other.hdf5", tmp_path / "table.parquet")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        convert(source, tmp_path / "file" / "table.parquet")
    assert sorted(os.listdir(tmp_path)) == ["file", "other.hdf5", "text.parquet"]


def test_damage_inside_is_told_from_a_full_disk(source: Path, tmp_path: Path) -> None:
    table = convert(source, tmp_path / "table.parquet")
    content = bytearray(table.read_bytes())
    content[5_000:60_000] = bytes(55_000)
    table.write_bytes(content)
    with pytest.raises(UserError, match=r"table.parquet: .* cannot be read"):
        convert(table, tmp_path / "back.hdf5")
    packed = tmp_path / "packed.hdf5"
    with h5py.File(packed, "w") as file:
        values = np.random.default_rng(0).normal(size=(5_000, 4))
        file.create_dataset("observations", data=values, chunks=(500, 4), compression="gzip")
        offset = file["observations"].id.get_chunk_info(3).byte_offset
    content = bytearray(packed.read_bytes())
    content[offset : offset + 400] = bytes(400)
    packed.write_bytes(content)
    with pytest.raises(UserError, match="'/observations' cannot be read"):
        convert(packed, tmp_path / "packed.parquet")
    assert sorted(os.listdir(tmp_path)) == ["packed.hdf5", "table.parquet"]
