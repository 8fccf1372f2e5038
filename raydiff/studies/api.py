"""What a study is: conditions that differ by a few settings, and a text of findings computed from what came out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from raydiff.config import Config, DataConfig
from raydiff.errors import UserError
from raydiff.presets import load_config
from raydiff.studies.measures import MEASURES, Column
from raydiff.studies.results import Results

Settings = Mapping[str, Any]
"""Dotted settings, as on the command line of ``raydiff train``."""

NOTE = (
    "Means over seeds with Student's 95 % intervals in brackets; a win or a loss is one where Welch's 95 % interval of "
    "the difference leaves out zero, anything else a tie. Scores are those of the last policy. Runs with the same data "
    "and model settings share one trained model, so intervals do not span its training."
)


@dataclass(frozen=True)
class Condition:
    """One line of a study's table: ``overrides`` over its settings, once for every seed.

    Conditions of a ``group`` stand together in the table; where all of a group have an ``x``, they are drawn over it.
    Those of the lowest ``rank`` are run first, all seeds of them, so that a study that is stopped early has said most.
    ``preset`` stands in for that of the scale. With ``played_from`` there is no run: the last policies of the condition
    of that name are played with ``overrides`` in place of settings of theirs (fields of the policy's spec).
    """

    name: str
    label: str
    group: str
    overrides: Settings = field(default_factory=dict)
    x: float | None = None
    rank: int = 0
    preset: str | None = None
    played_from: str | None = None


@dataclass(frozen=True)
class Scale:
    """A size of a study: a file in ``configs/`` and settings over it, among which ``scale`` is one of that file's."""

    preset: str
    settings: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A question, the runs that answer it, and what is read from them.

    The scale's settings lie over its preset, the user's over them, the condition's over all. ``conditions`` maps the
    configuration without its own overrides to the conditions; ``columns`` are keys of ``measures.MEASURES``. Where
    ``x`` names what the conditions' ``x`` are, results are drawn as curves over it. ``table`` gives Markdown lines in
    place of the usual table, ``draw`` a figure in place of the usual one. A study ``across`` datasets has its conditions
    on its own data, and once more on every dataset that is given; the datasets are its groups.
    """

    name: str
    title: str
    conditions: Callable[[Config], Sequence[Condition]]
    findings: Callable[[Results], list[str]]
    scales: Mapping[str, Scale]
    columns: tuple[str, ...] = ("score", "error", "deviation")
    x: str = ""
    note: str = NOTE
    measures: Mapping[str, Column] = field(default_factory=lambda: MEASURES)
    table: Callable[[Results], list[str]] | None = None
    draw: Callable[[Results], Figure | None] | None = None
    across: bool = False


@dataclass(frozen=True)
class Job:
    """One run: a condition with a seed, its configuration, and the folder that ``raydiff train`` makes for it."""

    condition: Condition
    seed: int
    config: Config

    @property
    def name(self) -> str:
        return f"{self.condition.name}/seed-{self.seed}"

    @property
    def folder(self) -> Path:
        return Path(self.config.output) / self.config.name

    @property
    def finished(self) -> bool:
        return (self.folder / "summary.json").is_file()


def plan(
    study: Study, scale: str, given: Sequence[str], seeds: int, out: Path, datasets: Sequence[str] = ()
) -> tuple[Config, list[Job]]:
    """The configuration that the conditions differ from, and all runs in the order in which they are worth most: by
    rank, then by seed. ``given`` are the user's overrides (``key=value``); ``datasets`` stand in for the study's data,
    or beside them where it is a study across datasets.

    Raises ``UserError`` for a scale that the study does not have, for settings that do not exist, and for more datasets
    than the study can have.
    """
    if scale not in study.scales:
        raise UserError(
            f"scale={scale}: the study {study.name} has no such scale. On offer: {', '.join(study.scales)}."
        )
    size = study.scales[scale]
    if len(datasets) > 1 and not study.across:
        raise UserError(f"The study {study.name} is made on one dataset: give --data once.")
    replaced = {} if study.across else {key: value for name in datasets for key, value in _instead(name).items()}
    settings = [*_texts({**size.settings, **replaced}), *given, "arms={}"]
    base = load_config(preset_path(size.preset), settings)
    conditions, jobs = study.conditions(base), list[Job]()
    if study.across:
        conditions = _on_each(study, [{}, *map(_instead, datasets)], preset_path(size.preset), settings)
    conditions = [condition for condition in conditions if condition.played_from is None]
    for rank in sorted({condition.rank for condition in conditions}):
        for seed in range(seeds):
            for condition in (one for one in conditions if one.rank == rank):
                own = {**condition.overrides, "seed": seed, "name": f"seed-{seed}", "output": str(out / condition.name)}
                config = load_config(preset_path(condition.preset or size.preset), [*settings, *_texts(own)])
                jobs.append(Job(condition, seed, config))
    return base, jobs


def dataset_label(data: DataConfig) -> str:
    """A short name: the file's without its folder, the id, or the environment of what is collected."""
    if data.dataset is None:
        return str(data.environment)
    return Path(data.dataset).stem if data.dataset.endswith((".hdf5", ".h5")) else data.dataset


def _instead(dataset: str) -> Settings:
    return {"data.environment": None, "data.dataset": dataset}


def _on_each(study: Study, data: Sequence[Settings], preset: Path, settings: Sequence[str]) -> list[Condition]:
    """The conditions on each of several data, which their names begin with. Raises ``UserError`` for equal names."""
    found: dict[str, list[Condition]] = {}
    for one in data:
        config = load_config(preset, [*settings, *_texts(one)])
        label = dataset_label(config.data)
        start = re.sub(r"[^A-Za-z0-9.]+", "-", label)
        if start in found:
            raise UserError(
                f"Two of the datasets of {study.name} are called {label}. Give each one once, and rename files."
            )
        found[start] = [
            replace(condition, name=f"{start}-{condition.name}", group=label, overrides={**one, **condition.overrides})
            for condition in study.conditions(config)
        ]
    return [condition for conditions in found.values() for condition in conditions]


def preset_path(name: str) -> Path:
    """A preset of ``configs/``: that of the checkout this package lies in, else of the working folder."""
    for folder in (Path(__file__).resolve().parents[2] / "configs", Path("configs")):
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"Studies start from presets, and there is no configs/{name} here. Run the command in a checkout of raydiff."
    )


def _texts(settings: Settings) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]
