"""``raydiff generate``: a synthetic dataset from a finished run, by any number of generators, resumably."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from raydiff.checkpoint import POLICY_SUFFIX, load_policy, policy_files, policy_of
from raydiff.config import Config
from raydiff.data.source import cache_folder, check_cache, load_dataset
from raydiff.errors import UserError
from raydiff.files import check_writable, whole_file
from raydiff.presets import load_config, main_arm
from raydiff.roles.models import Models
from raydiff.roles.pretrainer import cached_models, check_models, prepare_models
from raydiff.synthesis.assemble import assemble
from raydiff.synthesis.parts import Parts
from raydiff.synthesis.pool import LocalPool, Pool
from raydiff.synthesis.shards import Shards
from raydiff.types import PolicyBlob

Note = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Source:
    """What to generate from: the configuration of a run with overrides, and the policy of one of its arms."""

    config: Config
    arm: str
    policy: PolicyBlob

    @property
    def guided(self) -> bool:
        """Whether the policy takes part: as a guide, or because the method acts with it."""
        return self.config.guidance.kind != "none" or self.config.generator.method in ("dydiff", "pets")


def open_source(path: Path, arm: str | None, overrides: list[str]) -> Source:
    """A run folder, or the policy file of one of its arms. Raises ``UserError`` for anything else."""
    path = Path(os.path.expanduser(path))
    if path.name.endswith(POLICY_SUFFIX):
        folder, arm = path.parent.parent, path.name.removesuffix(POLICY_SUFFIX)
    else:
        folder = path
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"{path} is neither a run of raydiff (a folder with config.yaml) nor the file of a policy in a run's "
            f"checkpoints folder (ARM{POLICY_SUFFIX})."
        )
    files = policy_files(folder)
    if not files:
        raise UserError(f"{folder} has no finished arm yet: checkpoints/ARM{POLICY_SUFFIX} is missing.")
    config = load_config(folder / "config.yaml", ["arms={}", *overrides])
    main = main_arm(load_config(folder / "config.yaml"))
    name = policy_of(files, arm) if arm else policy_of(files, main) or next(iter(files))
    if name is None:
        raise UserError(f"{folder} has no arm {arm}. It has: {', '.join(files)}.")
    if config.generator.count < 1:
        raise UserError(f"generator.count={config.generator.count}: a dataset needs a generator. Set it to 1 or more.")
    return Source(config, name, load_policy(files[name]))


def generate_dataset(
    source: Source,
    transitions: int,
    out: str,
    runtime: Literal["ray", "local"] = "ray",
    restart: bool = False,
    overwrite: bool = False,
    note: Note = lambda what, done, total: None,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Path, int]:
    """Make ``transitions`` synthetic transitions (whole trajectories, so a few more) and write them to ``out``:
    ``FILE.hdf5`` (D4RL's schema), ``FILE.parquet`` or ``minari:ID``. Returns where, and how many.

    Shards are kept in ``out`` + ``.parts`` until the dataset is written, so that the same call goes on where an
    interrupted one ended; the result is the same bytes of data however often that happens and however many
    generators there are. ``note(what, done, total)`` tells of progress. Raises ``UserError`` and ``RunFailed``.
    """
    config = source.config
    target, folder = _check_target(out, overwrite)
    models = _models(config, note)
    parts = Parts(folder, _identity(source, models), restart)
    shards = Shards(transitions, config.generator.batch * (config.rows - 1), parts.known())
    if shards.complete is None:
        with _pool(source, models, runtime, say) as pool:
            while shards.complete is None:
                note("generating", min(shards.count, transitions), transitions)
                while pool.room > 0 and (shard := shards.next()) is not None:
                    pool.submit(shard)
                for made in pool.collect():
                    if made.rows is None or made.report is None:
                        shards.lose(made.shard)
                        continue
                    parts.write(made.shard, made.rows, made.report)
                    shards.finish(made.shard, made.report.transitions)
    note("generating", transitions, transitions)
    written = _write(target, out, parts, shards.complete, transitions, source, models, overwrite, note)
    parts.remove()
    return target, written


def _check_target(out: str, overwrite: bool) -> tuple[Path, Path]:
    """Where the dataset goes and where its parts wait. Refuses what could not be written in the end."""
    if out.startswith("minari:"):
        from raydiff.data.minari import check_id, minari_root

        check_id(out.removeprefix("minari:"))
        target = minari_root() / out.removeprefix("minari:")
    else:
        target = Path(os.path.expanduser(out))
        if target.suffix.lower() not in (".hdf5", ".h5", ".parquet"):
            raise UserError(f"--out {out}: give FILE.hdf5 (D4RL's schema), FILE.parquet or minari:ID.")
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists. Give another --out, or --overwrite to replace it.")
    check_writable(target, "Give another --out, in a folder with write permission and free space.")
    return target, target.with_name(f"{target.name}.parts")


def _models(config: Config, note: Note) -> Models:
    """From the cache; trained (again) where it lacks them."""
    dataset, cache = load_dataset(config.data, note), cache_folder(config.data)
    models = cached_models(config, dataset, cache)
    if models is None:
        check_models(config, dataset)
        check_cache(config.data)
        models = prepare_models(
            config, dataset, cache, lambda what, step, steps, *_: note(f"pretraining {what}", step, steps)
        )
    return models


def _identity(source: Source, models: Models) -> dict[str, Any]:
    """All that decides the bytes of a shard."""
    config = source.config.model_dump(mode="json")
    sections = ("sampler", "guidance", "rollout", "dydiff", "reward")
    generator = {
        key: config["generator"][key] for key in ("method", "batch", "filter", "keep", "temperature", "sigma_limit")
    }
    return {
        "seed": config["seed"],
        "model": models.name,
        "policy": {"arm": source.arm, "version": source.policy.version, "checksum": source.policy.checksum},
        "generator": generator,
        **{name: config[name] for name in sections},
    }


@contextmanager
def _pool(source: Source, models: Models, runtime: str, say: Callable[[str], None]) -> Iterator[Pool]:
    if runtime == "local":
        yield LocalPool(source.config, models, source.policy, source.guided)
        return
    from raydiff.runtime.address import find_address, prepare_environment

    prepare_environment(find_address(source.config.cluster.address, os.environ))
    from raydiff.runtime.pool import ray_pool

    with ray_pool(source.config, models, source.policy, source.guided, say) as pool:
        yield pool


def _write(
    target: Path,
    out: str,
    parts: Parts,
    shards: list[int] | None,
    transitions: int,
    source: Source,
    models: Models,
    overwrite: bool,
    note: Note,
) -> int:
    assert shards is not None
    attributes = {
        "environment": source.config.data.environment or "",
        "raydiff": json.dumps(_identity(source, models)),
        "level": "synthetic",
    }
    hdf5 = target if target.suffix.lower() in (".hdf5", ".h5") else parts.folder / "dataset.hdf5"
    with whole_file(hdf5) as part:
        written = assemble(
            part, parts, shards, transitions, models.observation_size, attributes, lambda d, n: note("writing", d, n)
        )
    if hdf5 != target:
        if out.startswith("minari:"):
            from raydiff.data.d4rl import read_d4rl
            from raydiff.data.minari_export import export_minari

            export_minari(read_d4rl(hdf5), out.removeprefix("minari:"), overwrite=overwrite)
        else:
            from raydiff.data.convert import convert

            convert(hdf5, target)
        hdf5.unlink()
    return written
