"""What ``raydiff audit`` is given: a run, a sample that a run kept, or a dataset."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raydiff.checkpoint import POLICY_SUFFIX, load_policy, policy_files, policy_of
from raydiff.config import Config, GuidanceConfig
from raydiff.data.dataset import Dataset
from raydiff.data.source import load_dataset, open_dataset
from raydiff.envs.registry import EnvironmentSpec, canonical, environment_of, environment_spec
from raydiff.errors import UserError
from raydiff.evaluation.audit_data import AuditData, longest_stretch
from raydiff.presets import load_config, main_arm
from raydiff.replay.samples import read_samples
from raydiff.types import PolicyBlob, Trajectories, Transitions

Note = Callable[[str, int, int], None]

SAMPLE = "_sample.npz"
LONGEST_WHOLE, PIECE = 100, 16
"""Stretches of a dataset up to the first are replayed whole; where one is longer, all are cut into pieces of the
second, the horizon of policy-guided diffusion's figure 6."""


@dataclass(frozen=True)
class Acting:
    """A policy to hold actions against, and the standard deviation given to a deterministic one."""

    policy: PolicyBlob
    delta: float


@dataclass(frozen=True)
class Subject:
    """Data to audit, by the name of their arm or file."""

    name: str
    data: AuditData
    acting: Acting | None


@dataclass(frozen=True)
class AuditJob:
    """What to audit over ``horizon`` steps against which real data; ``run`` is the folder of the run, if it is one.
    Without subjects, the real data alone are what is asked about."""

    environment: str
    real: Transitions
    real_name: str
    subjects: list[Subject]
    horizon: int
    run: Path | None = None


@dataclass(frozen=True)
class Options:
    """Options of the command line, and how much is to be looked at."""

    most: int
    seed: int
    environment: str | None = None
    data: str | None = None
    policy: Path | None = None
    horizon: int | None = None


def open_job(source: str, options: Options, note: Note) -> AuditJob:
    """Find what ``source`` is: the folder of a run, its ``ARM_sample.npz``, or a dataset (HDF5 in D4RL's schema, a D4RL
    id, ``minari:ID``). Raises ``UserError`` with what is missing."""
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        return _open_run(path, options, note)
    if path.suffix.lower() == ".npz":
        return _open_sample(path, options, note)
    return _open_dataset(source, options, note)


def _open_run(run: Path, options: Options, note: Note) -> AuditJob:
    paths = sorted(path for path in (run / "replay").glob(f"*{SAMPLE}") if path.name != f"real{SAMPLE}")
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} is not a run of raydiff (it has no config.yaml). Name a run folder or a data file.")
    if not paths:
        raise UserError(
            f"{run} has kept no synthetic trajectories (replay/ARM{SAMPLE}): it generated none, or has not ended yet."
        )
    return _job_of_samples(run, paths, options, note, run)


def _open_sample(path: Path, options: Options, note: Note) -> AuditJob:
    if not path.is_file():
        raise UserError(f"There is no file {path}. Runs keep samples as replay/ARM{SAMPLE}.")
    run = path.parent.parent if (path.parent.parent / "config.yaml").is_file() else None
    if run is None and not (options.data and options.environment):
        raise UserError(
            f"{path} lies in no run, so nothing says where its trajectories belong. Give --environment ID, and --data "
            "with the real data to hold them against."
        )
    return _job_of_samples(run, [path], options, note, None)


def _job_of_samples(
    run: Path | None, paths: list[Path], options: Options, note: Note, report_in: Path | None
) -> AuditJob:
    config = load_config(run / "config.yaml") if run is not None else None
    spec = environment_spec(options.environment or environment_of(_required(config).data))
    found = {path.name.removesuffix(SAMPLE): _read(path, spec) for path in paths}
    dataset = _open(options.data, note) if options.data else load_dataset(_required(config).data, note)
    real = _transitions(dataset, spec)
    given = _acting(options.policy) if options.policy else None
    subjects = [
        Subject(name, AuditData.of_trajectories(data), given or (_own_policy(run, name, config) if run else None))
        for name, data in found.items()
    ]
    horizon = options.horizon or max(data.length - 1 for data in found.values())
    return AuditJob(spec.id, real, dataset.name, subjects, horizon, report_in)


def _open_dataset(source: str, options: Options, note: Note) -> AuditJob:
    dataset = _open(source, note)
    environment = options.environment or dataset.environment
    if not environment:
        raise UserError(
            f"{source} does not say which environment it was collected in. Give --environment, a Gymnasium id such as "
            "Hopper-v4 or a D4RL name such as maze2d-umaze."
        )
    spec = environment_spec(canonical(environment))
    transitions = _transitions(dataset, spec)
    longest = longest_stretch(transitions)
    horizon = options.horizon or (longest if 0 < longest <= LONGEST_WHOLE else PIECE)
    if options.data is None:
        if dataset.metadata.get("level") == "synthetic":
            raise UserError(
                f"{source} is synthetic. Give the real data to hold it against, by --data: an HDF5 file, a D4RL id or "
                "minari:ID."
            )
        return AuditJob(spec.id, transitions, dataset.name, [], horizon)
    against = _open(options.data, note)
    data = AuditData.of_transitions(transitions, horizon, options.most, options.seed)
    acting = _acting(options.policy) if options.policy else None
    subject = Subject(dataset.name, data, acting)
    return AuditJob(spec.id, _transitions(against, spec), against.name, [subject], horizon)


def _open(name: str, note: Note) -> Dataset:
    return open_dataset(name, None, note)


def _transitions(dataset: Dataset, spec: EnvironmentSpec) -> Transitions:
    _check_sizes(dataset.path, dataset.observation_size, dataset.action_size, spec)
    return dataset.transitions("raydiff")


def _read(path: Path, spec: EnvironmentSpec) -> Trajectories:
    try:
        arrays = read_samples(path)
        parts = [arrays["observation"], arrays["action"], arrays["reward"][..., None], arrays["terminal"][..., None]]
        rows = np.concatenate(parts, axis=2, dtype=np.float32)
    except (OSError, KeyError, ValueError, EOFError, IndexError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is not a sample of trajectories ({error}). It must hold observation [n,L,S], action [n,L,A], "
            "reward [n,L] and terminal [n,L], as the files in a run's replay folder do."
        ) from None
    if rows.shape[0] < 1 or rows.shape[1] < 2:
        raise UserError(f"{path} holds {rows.shape[0]} trajectories of {rows.shape[1]} rows; 1 of 2 is the least.")
    _check_sizes(str(path), parts[0].shape[2], parts[1].shape[2], spec)
    return Trajectories(rows, parts[0].shape[2], parts[1].shape[2])


def _check_sizes(path: str, observation_size: int, action_size: int, spec: EnvironmentSpec) -> None:
    if (observation_size, action_size) != (spec.observation_size, spec.action_size):
        raise UserError(
            f"{path}: observations and actions have {observation_size} and {action_size} dimensions, but those of "
            f"{spec.id} have {spec.observation_size} and {spec.action_size}. Give the right --environment or file."
        )


def _own_policy(run: Path, arm: str, config: Config | None) -> Acting | None:
    found = policy_files(run)
    name = policy_of(found, arm)
    return Acting(load_policy(found[name]), _required(config).guidance.delta) if name is not None else None


def _acting(path: Path) -> Acting:
    """A policy file, or the one of a run: of the arm that the run is about, else of its first."""
    path = Path(os.path.expanduser(path))
    if not path.is_dir():
        settings = path.parent.parent / "config.yaml"
        guidance = load_config(settings).guidance if settings.is_file() else GuidanceConfig()
        return Acting(load_policy(path), guidance.delta)
    found = policy_files(path)
    if not found or not (path / "config.yaml").is_file():
        raise UserError(f"{path} is not a run with a policy: checkpoints/ARM{POLICY_SUFFIX} or config.yaml is missing.")
    config = load_config(path / "config.yaml")
    return Acting(load_policy(found[policy_of(found, main_arm(config)) or next(iter(found))]), config.guidance.delta)


def _required(config: Config | None) -> Config:
    assert config is not None, "samples outside a run come with --environment and --data"
    return config
