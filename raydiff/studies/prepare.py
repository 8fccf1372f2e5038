"""``python -m raydiff.studies.prepare CONFIG``: the dataset and the models of a run into the cache, before its runs.

A process of its own, so that the runs that share them neither train them twice at once nor are timed with them.
"""

from __future__ import annotations

import sys
from pathlib import Path

from raydiff.cli import guarded
from raydiff.data.source import cache_folder, check_cache, load_dataset, resolve
from raydiff.presets import load_config


def prepare(path: Path) -> None:
    """Collect, download and train what the cache lacks for the configuration at ``path``."""
    config = resolve(load_config(path))
    dataset = load_dataset(config.data)
    if not config.generator.count:
        return
    from raydiff.compute import configure_compute
    from raydiff.roles.pretrainer import check_models, prepare_models

    configure_compute(config.cluster.worker_threads or 1, config.cluster.matmul)
    check_models(config, dataset)
    check_cache(config.data)
    prepare_models(config, dataset, cache_folder(config.data), _line)


def _line(what: str, step: int, steps: int, loss: float, holdout: float | None) -> None:
    held = "" if holdout is None else f", held-out {holdout:.4g}"
    print(f"{what} {step:,} of {steps:,}, loss {loss:.4g}{held}", flush=True)


if __name__ == "__main__":
    sys.exit(guarded(lambda: prepare(Path(sys.argv[1]))))
