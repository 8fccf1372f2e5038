"""From a YAML preset and dotted overrides to one validated ``Config``.

A preset holds only what differs from the defaults. It may start from another (``extends: base.yaml``, beside it)
and offer variants (``scales: {tiny: {learner.updates: 200}}``, chosen by ``scale=tiny``). Later wins:
defaults, preset, scale, command line. ``arms={}`` drops the arms of a preset, ``arms.NAME=null`` one of them.
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


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read the preset at ``path`` (or the defaults), apply ``key=value`` overrides, validate.

    Raises ``UserError`` for a missing or malformed file, an unknown key (naming the nearest) or a wrong type.
    """
    preset, scales = _read_preset(Path(path)) if path is not None else ({}, {})
    given = [_parse_override(text) for text in overrides]
    for scale in [str(value) for key, value in given if key == "scale"]:
        if scale not in scales:
            has = f"{path} has no such scale" if path is not None else "scales come with a preset, and none is given"
            raise UserError(f"scale={scale}: {has}. On offer: {', '.join(scales) or 'none'}.")
        _merge(preset, _nest(scales[scale]))
    for key, value in given:
        if key != "scale":
            nested = _nest({key: value})
            _check_keys(Config, nested, "", "the command line")
            _merge(preset, nested)
    sources = ([str(path)] if path is not None else []) + (["the command line"] if given or path is None else [])
    return validate(preset, " with ".join(sources))


def validate(values: Mapping[str, Any], where: str) -> Config:
    """Turn nested values into a ``Config``; every complaint names the key and ``where`` it was read.

    Arms without a value are dropped: that is how an override takes one away.
    """
    arms = values.get("arms") or {}
    if isinstance(arms, Mapping):
        values = {**values, "arms": {name: changes for name, changes in arms.items() if changes is not None}}
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
        if getattr(arm, section) != getattr(config, section):
            raise UserError(
                f"{where} changes {section}, but the arms of a run share its data and models. Remove the {section} "
                f"keys from {where}, or make it a run of its own."
            )
    return arm


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


def _read_preset(path: Path, extended: tuple[Path, ...] = ()) -> tuple[dict[str, Any], dict[str, Any]]:
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
    if "extends" in content:
        base, scales = _read_preset(path.parent / str(content.pop("extends")), (*extended, path.resolve()))
    offered = content.pop("scales", None) or {}
    if not isinstance(offered, dict) or not all(isinstance(scale, dict) for scale in offered.values()):
        raise UserError(f"In {path}, scales must map the name of each scale to its keys and values.")
    for name, scale in offered.items():
        _merge(scales.setdefault(str(name), {}), _nest(scale))
    _merge(base, _nest(content))
    return base, scales


def _parse_override(text: str) -> tuple[str, Any]:
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
