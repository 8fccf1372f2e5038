"""The catalogue of a finished run as a table: where every block came from, one row each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raydiff.files import whole_file


def write_provenance(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the provenance of all blocks of a run as Parquet (columns as in ``Provenance``, plus sizes)."""
    flat = [
        {**{k: v for k, v in row.items() if k != "time"}, **{f"time_{k}": v for k, v in row["time"].items()}}
        for row in rows
    ]
    with whole_file(path) as part:
        pq.write_table(pa.Table.from_pylist(flat), part)
