"""D4RL-schema HDF5 to Parquet and back, with nothing lost but the compression.

In Parquet every row is one transition; matrices are columns of fixed-size lists, named by their path in the HDF5
file (``observations``, ``infos/qpos``). What has not one value per row (scalars, weights of policies, attributes) is
kept as JSON in the schema's metadata under ``raydiff``.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raydiff.data.d4rl import open_hdf5
from raydiff.errors import UserError
from raydiff.files import whole_file

Progress = Callable[[int, int], None]
_HDF5, _PARQUET = (".hdf5", ".h5"), (".parquet",)
_KEY = b"raydiff"
_BATCH = 65_536


def convert(source: str | Path, target: str | Path, progress: Progress | None = None) -> Path:
    """Convert a file by the endings of the names (``.hdf5`` or ``.h5``, ``.parquet``) and return ``target``.

    It is written whole or not at all; ``progress(done, total)`` counts rows. Raises ``UserError`` for a pair of
    endings that is none, a source that cannot be read and a target that cannot be written.
    """
    source, target = Path(os.path.expanduser(source)), Path(os.path.expanduser(target))
    endings = (source.suffix.lower(), target.suffix.lower())
    if endings[0] in _HDF5 and endings[1] in _PARQUET:
        with open_hdf5(source) as file, _whole(target) as temporary:
            _to_parquet(source, file, temporary, progress)
    elif endings[0] in _PARQUET and endings[1] in _HDF5:
        with _open_parquet(source) as table, _whole(target) as temporary:
            _to_hdf5(source, table, temporary, progress)
    else:
        raise UserError(
            f"cannot convert {source} to {target}: one name must end in .hdf5 or .h5 (D4RL's schema), the other in "
            f".parquet."
        )
    return target


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """As ``whole_file``, with the complaint of a conversion."""
    try:
        with whole_file(target) as part:
            yield part
    except OSError as error:
        raise UserError(
            f"{target}: the converted file cannot be written ({error.strerror or error}). Give a file in a folder with "
            "write permission and free space."
        ) from error


@contextmanager
def _open_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    if not path.is_file():
        raise UserError(f"{path}: there is no such file.")
    try:
        with pq.ParquetFile(path) as table:
            yield table
    except pa.ArrowException as error:
        raise UserError(f"{path}: the file cannot be read as Parquet ({error}). It is damaged or cut short.") from error


# -------------------------------------------------------------------------------------------------------- to Parquet


def _to_parquet(source: Path, file: h5py.File, target: Path, progress: Progress | None) -> None:
    if not isinstance(file.get("observations"), h5py.Dataset) or not file["observations"].shape:
        raise UserError(
            f"{source}: no array 'observations' at the top level of the file, so this is not D4RL's schema."
        )
    rows = len(file["observations"])
    items: dict[str, h5py.Dataset | h5py.Group] = {}
    file.visititems(items.__setitem__)
    columns = {name: item for name, item in items.items() if _is_column(item, rows)}
    others = {
        name: _encode(source, name, item)
        for name, item in items.items()
        if isinstance(item, h5py.Dataset) and name not in columns
    }
    attributes = {
        name: {key: _encode_value(source, key, value) for key, value in item.attrs.items()}
        for name, item in {"/": file, **items}.items()
        if item.attrs
    }
    shapes = {name: list(item.shape[1:]) for name, item in columns.items()}
    about = json.dumps({"shapes": shapes, "others": others, "attributes": attributes})
    fields = [pa.field(name, _arrow_type(item), nullable=False) for name, item in columns.items()]
    with pq.ParquetWriter(target, pa.schema(fields, {_KEY: about.encode()}), compression="zstd") as writer:
        for first in range(0, rows, _BATCH):
            stop = min(first + _BATCH, rows)
            arrays = [
                _to_arrow(_rows(source, item, first, stop), field.type)
                for item, field in zip(columns.values(), fields, strict=True)
            ]
            writer.write_batch(pa.record_batch(arrays, schema=writer.schema))
            if progress is not None:
                progress(stop, rows)


def _is_column(item: h5py.Dataset | h5py.Group, rows: int) -> bool:
    return (
        isinstance(item, h5py.Dataset)
        and bool(item.shape)
        and item.shape[0] == rows
        and item.dtype.kind in "fiub"
        and math.prod(item.shape[1:]) > 0
    )


def _rows(source: Path, item: h5py.Dataset, first: int, stop: int) -> np.ndarray:
    try:
        return item[first:stop]
    except OSError as error:
        raise UserError(
            f"{source}: '{item.name}' cannot be read ({error}). The file is damaged or cut short."
        ) from error


def _arrow_type(item: h5py.Dataset) -> pa.DataType:
    value = pa.from_numpy_dtype(item.dtype.newbyteorder("="))
    return value if item.ndim == 1 else pa.list_(value, math.prod(item.shape[1:]))


def _to_arrow(values: np.ndarray, type: pa.DataType) -> pa.Array:
    flat = pa.array(values.astype(values.dtype.newbyteorder("="), copy=False).reshape(-1))
    return flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, type.list_size)


def _encode(source: Path, name: str, item: h5py.Dataset) -> dict[str, Any]:
    if item.shape is None:
        return {"empty": item.dtype.str}
    return _encode_value(
        source, name, item.asstr()[()] if item.dtype.kind == "O" and h5py.check_string_dtype(item.dtype) else item[()]
    )


def _encode_value(source: Path, name: str, value: Any) -> dict[str, Any]:
    """A text or an array as JSON: texts as they are, numbers as NumPy's own file format."""
    array = np.asarray(value)
    if array.dtype.kind in "OU":
        texts = array.tolist()
        if all(isinstance(text, str) for text in np.ravel(array)):
            return {"text": texts}
    elif array.dtype.kind in "fiubcS":
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        return {"npy": base64.b64encode(buffer.getvalue()).decode()}
    raise UserError(
        f"{source}: '{name}' holds values of type {array.dtype}, which Parquet has no place for. Remove it."
    )


# ----------------------------------------------------------------------------------------------------------- to HDF5


def _to_hdf5(source: Path, table: pq.ParquetFile, target: Path, progress: Progress | None) -> None:
    schema, rows = table.schema_arrow, table.metadata.num_rows
    about = json.loads((schema.metadata or {}).get(_KEY, b"{}"))
    shapes = {field.name: _shape(source, field, about.get("shapes", {})) for field in schema}
    with h5py.File(target, "w") as file:
        for field in schema:
            value = field.type.value_type if pa.types.is_fixed_size_list(field.type) else field.type
            file.create_dataset(
                field.name,
                shape=(rows, *shapes[field.name]),
                dtype=value.to_pandas_dtype(),
                compression="gzip",
                compression_opts=4,
                chunks=True,
            )
        done = 0
        for batch in _batches(source, table):
            stop = done + len(batch)
            for name, column in zip(schema.names, batch.columns, strict=True):
                flat = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
                values = flat.to_numpy(zero_copy_only=False)
                file[name][done:stop] = values.reshape(len(batch), *shapes[name])
            done = stop
            if progress is not None:
                progress(done, rows)
        for name, encoded in about.get("others", {}).items():
            file[name] = _decode(encoded)
        for name, attributes in about.get("attributes", {}).items():
            item = file.require_group(name) if name not in file else file[name]
            item.attrs.update({key: _decode(encoded) for key, encoded in attributes.items()})


def _batches(source: Path, table: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
    try:
        yield from table.iter_batches(_BATCH)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{source}: the table cannot be read ({error}). The file is damaged or cut short.") from error


def _shape(source: Path, field: pa.Field, shapes: dict[str, list[int]]) -> list[int]:
    """What one row of a column is shaped like."""
    size = field.type.list_size if pa.types.is_fixed_size_list(field.type) else 1
    value = field.type.value_type if pa.types.is_fixed_size_list(field.type) else field.type
    if not (pa.types.is_integer(value) or pa.types.is_floating(value) or pa.types.is_boolean(value)):
        raise UserError(
            f"{source}: column '{field.name}' is of type {field.type}. Columns must be numbers, or lists of numbers of "
            f"one fixed size (pyarrow's pa.list_(pa.float32(), SIZE))."
        )
    return shapes.get(field.name, [size] if pa.types.is_fixed_size_list(field.type) else [])


def _decode(encoded: dict[str, Any]) -> Any:
    if "empty" in encoded:
        return h5py.Empty(encoded["empty"])
    if "text" in encoded:
        return encoded["text"]
    array = np.load(io.BytesIO(base64.b64decode(encoded["npy"])), allow_pickle=False)
    return array[()]
