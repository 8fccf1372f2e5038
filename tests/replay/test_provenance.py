from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path

import pyarrow.parquet as pq

from raydiff.replay.provenance import write_provenance
from raydiff.types import Provenance


def row(block: int, parent: int | None) -> dict[str, object]:
    origin = Provenance(
        block, "guided", f"generator/{block}", shard=block + 5, seed=2**62 + block, policy_version=50 * block,
        denoiser="0123abcd", guidance="policy", strength=2.0, nfe=31, parent_block=parent,
        time={"start": 1.25 * block, "end": 1.5 * block},
    )  # fmt: skip
    return {**asdict(origin), "trajectories": 512, "transitions": 1_000 + block}


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "replay" / "alpha_2.5.parquet"
    rows = [row(1, None), row(2, 1), row(3, None)]
    write_provenance(path, rows)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    read = pq.read_table(path).to_pylist()
    names = {field.name for field in fields(Provenance)} - {"time"}
    assert set(read[0]) == names | {"trajectories", "transitions", "time_start", "time_end"}
    for original, back in zip(rows, read, strict=True):
        time = original["time"]
        assert {name: back[name] for name in names} == {name: original[name] for name in names}
        assert (back["time_start"], back["time_end"]) == (time["start"], time["end"])
        assert (back["trajectories"], back["transitions"]) == (512, original["transitions"])


def test_writing_again_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "guided.parquet"
    write_provenance(path, [row(1, None), row(2, 1)])
    write_provenance(path, [row(3, None)])
    assert pq.read_table(path).column("block").to_pylist() == [3]
