"""From a YAML preset and dotted overrides to one validated ``Config``.

A preset holds only what differs from the defaults. It may start from another (``extends: base.yaml``, beside it)
and offer variants (``scales: {tiny: {learner.updates: 200}}``, chosen by ``scale=tiny``) and tasks (see
``raydiff.tasks``, chosen by ``task=hopper-medium-v2``). Later wins: defaults, preset, task, scale, command line.
``arms={}`` drops the arms of a preset, ``arms.NAME=null`` one of them, and ``arms.NAME.seed=[1, 2]`` makes two of one:
``NAME_1`` and ``NAME_2``.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from raydiff.config import Config
from raydiff.errors import UserError
from raydiff.tasks import Table, check_table, choose, settings_of, task_base

GENERATION = (
    "audit",
    "denoiser",
    "dydiff",
    "dynamics",
    "generator",
    "guidance",
    "refiner",
    "replay",
    "reward",
    "rollout",
    "sampler",
    "schedule",
)
"""Sections that act on synthetic data alone."""

_VARIANTS = ("scale", "task")  # keys of the command line that choose among what a preset offers


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read the preset at ``path`` (or the defaults), apply ``key=value`` overrides, validate.

    Raises ``UserError`` for a missing or malformed file, an unknown key (naming the nearest) or a wrong type, and for
    a preset with tasks of which none is chosen.
    """
    preset, scales, tasks = _read_preset(Path(path)) if path is not None else ({}, {}, {})
    given = [parse_override(text) for text in overrides]
    chosen = [str(value) for key, value in given if key == "scale"]
    for scale in chosen:
        if scale not in scales:
            has = f"{path} has no such scale" if path is not None else "scales come with a preset, and none is given"
            raise UserError(f"scale={scale}: {has}. On offer: {', '.join(scales) or 'none'}.")
    wanted = [None if value is None else str(value) for key, value in given if key == "task"]
    if tasks or wanted:
        _choose_task(preset, tasks, wanted[-1] if wanted else None, str(path or "the defaults"))
    for scale in chosen:
        _merge(preset, _nest(scales[scale]))
    for key, value in given:
        if key not in _VARIANTS:
            nested = _nest({key: value})
            _check_keys(Config, nested, "", "the command line")
            _merge(preset, nested)
    sources = ([str(path)] if path is not None else []) + (["the command line"] if given or path is None else [])
    return validate(preset, " with ".join(sources))


def read_tasks(path: str | Path) -> dict[str, dict[str, Any]]:
    """The table of tasks of a preset, that of the preset below it first; empty where it has none."""
    return _read_preset(Path(path))[2]


def _choose_task(preset: dict[str, Any], tasks: Table, wanted: str | None, where: str) -> None:
    """Put what a task says over ``preset``; the run's name says which it is."""
    name, found = choose(tasks, wanted, where)
    for values in (task_base(name), {"name": f"{preset.get('name', 'run')}-{name}"}, _nest(settings_of(found))):
        _merge(preset, values)


def validate(values: Mapping[str, Any], where: str) -> Config:
    """Turn nested values into a ``Config``; every complaint names the key and ``where`` it was read.

    Arms without a value are dropped: that is how an override takes one away. One with a list of seeds becomes one arm
    per seed.
    """
    arms = values.get("arms") or {}
    if isinstance(arms, Mapping):
        kept = {name: changes for name, changes in arms.items() if changes is not None}
        values = {**values, "arms": _one_arm_per_seed(kept, where)}
    _check_keys(Config, values, "", where)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"])
            lines.append(f"{key}={problem['input']!r}: {problem['msg'].lower()}")
        raise UserError(f"In {where}: " + "; ".join(lines) + ". Correct the value; --help lists every key.") from None


def derive(config: Config, overrides: Mapping[str, Any], where: str) -> Config:
    """A copy of ``config`` with dotted overrides, as the arms of a run are made.

    Raises ``UserError`` for what ``validate`` refuses, and for data or models that are not those of ``config``.
    """
    values = config.model_dump(mode="json")
    values["arms"] = {}
    _merge(values, _nest(overrides))
    arm = validate(values, where)
    if arm.generator.count and arm.generator.method != config.generator.method:
        raise UserError(
            f"{where} changes generator.method, but the arms of a run share its models. Make it a run of its own, and "
            "compare the two with `raydiff report`."
        )
    for section in ("data", "denoiser", "reward", "dynamics"):
        if _shared(arm, section) != _shared(config, section):
            raise UserError(
                f"{where} changes {section}, but the arms of a run share its data and models. Remove the {section} "
                f"keys from {where}, or make it a run of its own."
            )
    return arm


def _shared(config: Config, section: str) -> dict[str, Any]:
    """What arms have in common of a section: of the data, all but what each learner makes of the rewards."""
    values = getattr(config, section).model_dump()
    return {key: value for key, value in values.items() if section != "data" or not key.startswith("reward_")}


def _one_arm_per_seed(arms: Mapping[str, Any], where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, changes in arms.items():
        seeds = changes.get("seed") if isinstance(changes, Mapping) else None
        each = {name: changes}
        if isinstance(seeds, list):
            if not seeds or len({str(seed) for seed in seeds}) < len(seeds):
                raise UserError(
                    f"In {where}: arms.{name}.seed={seeds} must list seeds, each once, for example [1, 2, 3]: each of "
                    "them becomes an arm of its own."
                )
            each = {f"{name}_{seed}": {**changes, "seed": seed} for seed in seeds}
        twice = sorted(found.keys() & each.keys())
        if twice:
            raise UserError(
                f"In {where}: two arms are called {twice[0]}, one of them made by arms.{name}.seed. Rename it."
            )
        found |= each
    return found


def arms_of(config: Config) -> dict[str, Config]:
    """The other arms of a run, by name, each with its whole configuration. Raises what ``derive`` raises."""
    others = {name: changes for name, changes in config.arms.items() if name != main_arm(config)}
    arms = {name: derive(config, changes, f"arms.{name}") for name, changes in others.items()}
    return {name: arm for name, arm in arms.items() if not _repeats(config, arm)}


def _repeats(config: Config, arm: Config) -> bool:
    """Whether an arm on real data alone would be its run again, which has no synthetic data either."""
    if config.generator.count or arm.generator.count:
        return False
    return _on_real_data(config) == _on_real_data(arm)


def _on_real_data(config: Config) -> dict[str, Any]:
    return config.model_dump(exclude={"name", "output", "arms", "arms_together", *GENERATION})


def together(config: Config) -> dict[str, Config]:
    """The learners that are there at the same time by ``arms_together``, the run's own first; without it, that alone.

    Arms on real data alone are done beside the pretraining, and belong here only where nothing needs a model.
    """
    found = {main_arm(config): config}
    if not config.arms_together:
        return found
    arms = arms_of(config)
    generating = {name: arm for name, arm in arms.items() if arm.generator.count}
    return found | (generating if generating or config.generator.count else arms)


def main_arm(config: Config) -> str:
    """The name of the run itself among its arms."""
    if not config.generator.count:
        return "real_only"
    if config.generator.method != "pgd":
        return config.generator.method
    return "guided" if config.guidance.kind != "none" else "unguided"


def dump(config: Config) -> str:
    """The whole configuration as YAML, readable by ``load_config``."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def config_hash(config: Config) -> str:
    """Twelve hex digits over everything that can change a result (not the name or the folders)."""
    values = config.model_dump(mode="json")
    for key in ("name", "output"):
        values.pop(key)
    values["data"].pop("cache")
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def describe() -> list[tuple[str, str, str]]:
    """Every key as ``(dotted name, default, description)``, for ``--help``."""
    return _describe(Config, "")


def _describe(model: type[BaseModel], prefix: str) -> list[tuple[str, str, str]]:
    rows = []
    for name, field in model.model_fields.items():
        if isinstance(field.default, BaseModel):
            rows += _describe(type(field.default), f"{prefix}{name}.")
        else:
            default = field.get_default(call_default_factory=True)
            rows.append((prefix + name, "" if default is None else str(default), field.description or ""))
    return rows


def _read_preset(
    path: Path, extended: tuple[Path, ...] = ()
) -> tuple[dict[str, Any], dict[str, Any], dict[str, dict[str, Any]]]:
    """Settings, scales and tasks of a file and of those that it extends."""
    if path.resolve() in extended:
        raise UserError(f"{path} extends itself, directly or through others. Remove one of the extends lines.")
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        hint = f" Did you mean {path.parent / near[0]}?" if near else ""
        raise UserError(f"There is no configuration file {path}.{hint} Presets lie in configs/.") from None
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}.") from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold keys and values at its top level, not a {type(content).__name__}.")
    base: dict[str, Any] = {}
    scales: dict[str, Any] = {}
    tasks: dict[str, dict[str, Any]] = {}
    if "extends" in content:
        base, scales, tasks = _read_preset(path.parent / str(content.pop("extends")), (*extended, path.resolve()))
    offered = content.pop("scales", None) or {}
    if not isinstance(offered, dict) or not all(isinstance(scale, dict) for scale in offered.values()):
        raise UserError(f"In {path}, scales must map the name of each scale to its keys and values.")
    for name, scale in offered.items():
        _merge(scales.setdefault(str(name), {}), _nest(scale))
    table = content.pop("tasks", None) or {}
    check_table(table, str(path))
    for name, settings in table.items():
        _merge(tasks.setdefault(str(name), {}), settings)
    _merge(base, _nest(content))
    return base, scales, tasks


def parse_override(text: str) -> tuple[str, Any]:
    """Key and value of ``key=value``. Raises ``UserError`` for what does not read so."""
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise UserError(f"The override {text!r} must read key=value, for example learner.batch_size=512.")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(
            f"The override {text!r} has a value that cannot be read: {' '.join(str(error).split())}."
        ) from None


def _nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys to nested mappings, except below ``arms``, whose overrides stay dotted."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        parts = str(key).split(".")
        if parts[0] != "arms" and isinstance(value, Mapping):
            value = _nest(value)
        for part in reversed(parts):
            value = {part: value}
        _merge(nested, value)
    return nested


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Put ``values`` over ``into``, group by group; an empty group clears the one below."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _check_keys(model: type[BaseModel], values: Mapping[str, Any], prefix: str, where: str) -> None:
    for key, value in values.items():
        field = model.model_fields.get(key)
        if field is None:
            raise UserError(f"Unknown key {prefix}{key} in {where}.{_nearest(prefix + key)} --help lists every key.")
        if isinstance(field.default, BaseModel):
            if not isinstance(value, Mapping):
                raise UserError(f"{prefix}{key} in {where} is a group of keys, not a single value ({value!r}).")
            _check_keys(type(field.default), value, f"{prefix}{key}.", where)


def _nearest(key: str) -> str:
    known = [name for name, _, _ in describe()]
    leaf = key.rsplit(".", 1)[-1]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    near = near or [name for name in known if name.rsplit(".", 1)[-1] == leaf][:1]
    near = near or difflib.get_close_matches(key, known, n=1, cutoff=0.3)
    return f" The nearest is {near[0]}." if near else ""
