"""Studies that are a plain computation and need no runs: of an exact law on a toy, of the time that something takes.

Their folder is that of any study: ``table.md``, ``results.json`` and ``figure.png``, and for every part and seed what it
gave (``PART/seed-0.json``, its arrays in ``seed-0.npz``). A part that is there is not computed again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from pydantic import ValidationError

from raydiff.errors import UserError
from raydiff.figures import save
from raydiff.files import probe_folder, whole_file
from raydiff.presets import parse_override
from raydiff.section import Section
from raydiff.studies.figure import study_figure
from raydiff.studies.measures import Column
from raydiff.studies.results import Results, Row, Value
from raydiff.studies.runner import Note, OnExisting, terminations_interrupt
from raydiff.studies.table import write_results

NOTE = "Means over seeds with Student's 95 % intervals in brackets; one seed has none."

Arrays = Mapping[str, np.ndarray]
Told = Callable[[int, int], None]
"""``told(done, total)``: how far a part is."""


@dataclass(frozen=True)
class Line:
    """What one seed gave for one line of the table: ``values`` by measure. ``x`` as in ``api.Condition``."""

    name: str
    label: str
    group: str
    values: Mapping[str, Value]
    x: float | None = None


@dataclass(frozen=True)
class Piece:
    """What one part gave for one seed. ``arrays`` are kept for the figure; ``facts`` are said of the whole study.
    ``settings`` are those it was computed with, known once it is read again."""

    part: str
    seed: int
    lines: Sequence[Line]
    arrays: Arrays = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Computed:
    """A question that ``compute(options, part, seed, told) -> Piece`` answers part by part, for every seed anew.

    ``options`` are the settings, ``scales`` what each scale changes in them, ``parts`` the names of the parts. A line
    that several parts or seeds give stands once in the table. ``measures`` are its columns in order; ``findings`` and
    ``x`` are as in ``api.Study``. ``draw`` makes the figure from the results and all pieces; without it there are dots
    or curves of every column. Parts are computed on one thread and must depend on options, part and seed alone.
    """

    name: str
    title: str
    options: type[Section]
    scales: Mapping[str, Mapping[str, Any]]
    parts: Callable[[Any], Sequence[str]]
    compute: Callable[[Any, str, int, Told], Piece]
    measures: Mapping[str, Column]
    findings: Callable[[Results], list[str]]
    draw: Callable[[Results, Sequence[Piece]], Figure | None] | None = None
    x: str = ""
    note: str = NOTE

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.measures)


def read_options(study: Computed, scale: str, given: Sequence[str]) -> Any:
    """The settings of a scale with ``key=value`` overrides. Raises ``UserError`` for what the study does not have."""
    if scale not in study.scales:
        raise UserError(
            f"scale={scale}: the study {study.name} has no such scale. On offer: {', '.join(study.scales)}."
        )
    try:
        return study.options(**{**study.scales[scale], **dict(parse_override(text) for text in given)})
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg'].lower()}" for p in error.errors())
        known = ", ".join(f"{name} ({info.description})" for name, info in study.options.model_fields.items())
        raise UserError(f"The study {study.name} cannot be made so: {problems}. Its settings: {known}") from None


def chosen_parts(study: Computed, options: Any, only: str | None) -> list[str]:
    """The parts whose names match ``only`` (patterns with commas between). Raises ``UserError`` where none does."""
    patterns = [pattern.strip() for pattern in (only or "*").split(",")]
    parts = list(study.parts(options))
    found = [part for part in parts if any(fnmatch(part, pattern) for pattern in patterns)]
    if not found:
        raise UserError(f"--only {only}: no part of {study.name} is called so. On offer: {', '.join(parts)}.")
    return found


def compute(
    study: Computed,
    options: Any,
    parts: Sequence[str],
    seeds: int,
    folder: Path,
    on_existing: OnExisting,
    note: Note,
) -> None:
    """Compute what is not in ``folder`` yet, all parts of a seed before the next. Raises ``UserError`` where something
    is there that was made with other settings, before anything is computed."""
    work = [(part, seed) for seed in range(seeds) for part in parts]
    if on_existing == "resume":
        work = [key for key in work if not _made(study, options, folder, *key)]
    try:
        probe_folder(folder)
        for done, (part, seed) in enumerate(work):
            what = f"{part}, seed {seed}"
            note("study", done, len(work), what)

            def told(now: int, total: int, what: str = what) -> None:
                note(what, now, total, "")

            with terminations_interrupt(), one_thread():
                piece = study.compute(options, part, seed, told)
            _write(folder, options, piece)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror or error}). Choose another folder with --out."
        ) from None


def pieces(study: Computed, parts: Sequence[str], seeds: int, folder: Path) -> list[Piece]:
    """What has been computed so far, by part and seed."""
    paths = [(part, seed, _path(folder, part, seed)) for part in parts for seed in range(seeds)]
    return [_read(part, seed, path) for part, seed, path in paths if path.is_file()]


def publish(study: Computed, found: Sequence[Piece], folder: Path) -> list[Path]:
    """Write table, results and figure and return the files, the table first. Raises ``UserError``."""
    results = gather(study, found)
    findings = study.findings(results)
    figure = study_figure(results, study) if study.draw is None else study.draw(results, found)
    try:
        files = write_results(results, study, folder, findings)
        if figure is not None:
            files.append(folder / "figure.png")
            save(figure, files[-1])
    except OSError as error:
        raise UserError(
            f"The results cannot be written to {folder} ({error.strerror or error}). Choose another folder with --out."
        ) from None
    return files


def gather(study: Computed, found: Sequence[Piece]) -> Results:
    """One row for each line, with its values by seed; the facts are settings and facts of the pieces."""
    lines: dict[str, Line] = {}
    values: dict[str, dict[int, dict[str, Value]]] = {}
    for piece in found:
        for line in piece.lines:
            lines.setdefault(line.name, line)
            values.setdefault(line.name, {}).setdefault(piece.seed, {}).update(line.values)
    rows = [Row(name, line.label, line.group, {}, line.x, values[name]) for name, line in lines.items()]
    order = list(dict.fromkeys(row.group for row in rows))
    said = [{**piece.settings, "seeds": len({piece.seed for piece in found}), **piece.facts} for piece in found]
    facts = {key: _one_of([facts[key] for facts in said if key in facts]) for facts in said for key in facts}
    return Results(study.name, study.title, sorted(rows, key=lambda row: order.index(row.group)), facts)


def _one_of(values: Sequence[Any]) -> Any:
    """The value on which all pieces agree, or all that there are."""
    plain = [", ".join(map(str, value)) if isinstance(value, list) else value for value in values]
    unique = list(dict.fromkeys(plain))
    return unique[0] if len(unique) == 1 else " or ".join(map(str, unique))


def _path(folder: Path, part: str, seed: int) -> Path:
    return folder / part / f"seed-{seed}.json"


def _made(study: Computed, options: Any, folder: Path, part: str, seed: int) -> bool:
    path = _path(folder, part, seed)
    if not path.is_file():
        return False
    settings, wanted = json.loads(path.read_text())["settings"], options.model_dump(mode="json")
    changed = [key for key in {**settings, **wanted} if settings.get(key) != wanted.get(key)]
    if changed:
        key = changed[0]
        raise UserError(
            f"{path} was made with other settings ({key} is {settings.get(key)} there and {wanted.get(key)} here). Give "
            "the study another folder with --out, make all of it anew with --on-existing overwrite, or only read what "
            "is there with --read."
        )
    return True


def _write(folder: Path, options: Any, piece: Piece) -> None:
    """The arrays first: where there is a JSON file, the piece is whole."""
    path = _path(folder, piece.part, piece.seed)
    for old in (path, path.with_suffix(".npz")):
        old.unlink(missing_ok=True)
    arrays: Any = dict(piece.arrays)
    if arrays:
        with whole_file(path.with_suffix(".npz")) as part, part.open("wb") as file:
            np.savez_compressed(file, **arrays)
    content = {
        "settings": options.model_dump(mode="json"),
        "facts": dict(piece.facts),
        "lines": [asdict(line) for line in piece.lines],
    }
    with whole_file(path) as part:
        part.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _read(part: str, seed: int, path: Path) -> Piece:
    content, arrays = json.loads(path.read_text()), path.with_suffix(".npz")
    kept: dict[str, np.ndarray] = {}
    if arrays.is_file():
        with np.load(arrays, allow_pickle=False) as file:
            kept = {name: file[name] for name in file.files}
    return Piece(part, seed, [Line(**line) for line in content["lines"]], kept, content["facts"], content["settings"])


@contextmanager
def one_thread() -> Iterator[None]:
    """So that the same seed gives the same bytes, on however many cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
