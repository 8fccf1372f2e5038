"""A Python with JAX for the peers, apart from the project's own: made once, in the cache."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

from raydiff.config import DataConfig
from raydiff.data.source import cache_folder

JAX = "jax[cpu]==0.10.2"


def jax_python(given: Path | None) -> Path:
    """The interpreter ``given``, or that of a virtual environment with ``JAX``, which is made when it is missing."""
    if given is not None:
        return given
    folder = cache_folder(DataConfig()) / "benchmark-jax"
    python = folder / "bin" / "python"
    if not (folder / ".complete").is_file():
        print(f"installing {JAX} into {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", JAX], check=True)
        (folder / ".complete").touch()
    return python
