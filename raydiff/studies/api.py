"""What a study is: conditions that differ by a few settings, and a text of findings computed from what came out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raydiff.config import Config
from raydiff.errors import UserError
from raydiff.presets import load_config
from raydiff.studies.results import Results

Settings = Mapping[str, Any]
"""Dotted settings, as on the command line of ``raydiff train``."""


@dataclass(frozen=True)
class Condition:
    """One line of a study's table: ``overrides`` over its settings, once for every seed.

    Conditions of a ``group`` stand together in the table; where all of a group have an ``x``, they are drawn over it.
    Those of the lowest ``rank`` are run first, all seeds of them, so that a study that is stopped early has said most.
    ``preset`` stands in for that of the scale.
    """

    name: str
    label: str
    group: str
    overrides: Settings = field(default_factory=dict)
    x: float | None = None
    rank: int = 0
    preset: str | None = None


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
    ``x`` names what the conditions' ``x`` are, results are drawn as curves over it.
    """

    name: str
    title: str
    conditions: Callable[[Config], Sequence[Condition]]
    findings: Callable[[Results], list[str]]
    scales: Mapping[str, Scale]
    columns: tuple[str, ...] = ("score", "error", "deviation")
    x: str = ""


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


def plan(study: Study, scale: str, given: Sequence[str], seeds: int, out: Path) -> tuple[Config, list[Job]]:
    """The configuration that the conditions differ from, and all runs in the order in which they are worth most: by
    rank, then by seed. ``given`` are the user's overrides (``key=value``).

    Raises ``UserError`` for a scale that the study does not have, and for settings that do not exist.
    """
    if scale not in study.scales:
        raise UserError(
            f"scale={scale}: the study {study.name} has no such scale. On offer: {', '.join(study.scales)}."
        )
    size = study.scales[scale]
    settings = [*_texts(size.settings), *given, "arms={}"]
    base = load_config(preset_path(size.preset), settings)
    conditions, jobs = study.conditions(base), list[Job]()
    for rank in sorted({condition.rank for condition in conditions}):
        for seed in range(seeds):
            for condition in (one for one in conditions if one.rank == rank):
                own = {**condition.overrides, "seed": seed, "name": f"seed-{seed}", "output": str(out / condition.name)}
                config = load_config(preset_path(condition.preset or size.preset), [*settings, *_texts(own)])
                jobs.append(Job(condition, seed, config))
    return base, jobs


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
