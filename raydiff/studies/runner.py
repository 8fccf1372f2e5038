"""Runs the jobs of a study, each as a ``raydiff train`` of its own, some at once, and goes on where it was stopped.

A run that has a ``summary.json`` is not run again. Beside each run folder lie the settings it was asked for
(``seed-0.yaml``) and its output (``seed-0.log``). A run that fails leaves its reason and stops no other.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from raydiff.config import Config
from raydiff.errors import UserError
from raydiff.files import whole_file
from raydiff.presets import dump, load_config
from raydiff.studies.api import Job

Note = Callable[[str, int, int, str], None]
"""``note(what, done, total, more)``, called about every second."""

OnExisting = Literal["resume", "overwrite"]
GRACE_S = 30.0  # for a run that was asked to stop to leave its checkpoint
POLL_S = 0.1
LONGEST = 300  # characters of a reason; its log has the rest
_COMPLAINT = re.compile(r"raydiff: |(\w+\.)*\w+(Error|Exception)\b")  # ours, or the last lines of a traceback


@dataclass
class _Child:
    """A process at work for some jobs: for one run, or for the models of all that share them."""

    what: str
    process: subprocess.Popen[bytes]
    log: Path
    started: float
    key: str | None = None
    job: Job | None = None

    def reason(self) -> str:
        """The last thing it said, or how it ended."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        starts = [place for place, line in enumerate(lines) if _COMPLAINT.match(line)]
        said = " ".join(lines[starts[-1] if starts else -1 :]).removeprefix("raydiff: ") or "it said nothing"
        said = said if len(said) <= LONGEST else f"{said[:LONGEST]} ..."
        code = self.process.returncode
        how = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
        return f"{said} ({how}; see {self.log})"


def check_jobs(jobs: Sequence[Job], on_existing: OnExisting) -> None:
    """Raise ``UserError`` where a finished run was made with other settings: mixed, a table would compare nothing."""
    if on_existing == "overwrite":
        return
    for job in jobs:
        path = _settings(job)
        if not job.finished or not path.is_file():
            continue
        changed = _changed(path, job.config)
        if changed:
            raise UserError(
                f"{job.folder} is a finished run with other settings ({changed}). Give the study another folder with "
                "--out, make all of it anew with --on-existing overwrite, or only read what is there with --read."
            )


def execute(
    jobs: Sequence[Job],
    runtime: Literal["ray", "local"],
    at_once: int,
    on_existing: OnExisting,
    note: Note,
    say: Callable[[str], None],
) -> dict[str, str]:
    """Run what is not finished and return the reasons of the jobs that failed, by name.

    In the local runtime ``at_once`` runs share the machine, one thread each, and models are trained before the first
    run that needs them; on Ray one run follows the other. Ctrl-C and SIGTERM stop the runs and raise
    ``KeyboardInterrupt``.
    """
    pending = [job for job in jobs if on_existing == "overwrite" or not job.finished]
    board = _Board(len(jobs), len(jobs) - len(pending), runtime, at_once if runtime == "local" else 1)
    with terminations_interrupt():
        try:
            while pending or board.children:
                board.fill(pending)
                board.reap(pending, say)
                note("study", board.done, board.total, board.active())
                time.sleep(POLL_S)
        finally:
            board.stop()
    return board.failures


class _Board:
    """The children at work, what is prepared, and what has failed."""

    def __init__(self, total: int, done: int, runtime: str, at_once: int) -> None:
        self.total, self.done, self.runtime, self.at_once = total, done, runtime, at_once
        self.children: list[_Child] = []
        self.prepared: set[str] = set()
        self.failures: dict[str, str] = {}

    def fill(self, pending: list[Job]) -> None:
        """Start what comes first among the jobs that can start, up to the number at once."""
        for job in list(pending):
            if len(self.children) >= self.at_once:
                return
            key = models_key(job.config)
            if self.runtime == "ray" or key in self.prepared:
                pending.remove(job)
                self.children.append(self._run(job))
            elif not any(child.key == key for child in self.children):
                self.children.append(self._prepare(job, key))

    def reap(self, pending: list[Job], say: Callable[[str], None]) -> None:
        """Take note of the children that have ended."""
        for child in [c for c in self.children if c.process.poll() is not None]:
            self.children.remove(child)
            good = child.process.returncode == 0
            if child.job is not None:
                self._ended(child.job, None if good and child.job.finished else child.reason(), say)
            elif good and child.key is not None:
                self.prepared.add(child.key)
            else:
                for job in [j for j in pending if models_key(j.config) == child.key]:
                    pending.remove(job)
                    self._ended(job, child.reason(), say)

    def active(self) -> str:
        now = time.monotonic()
        return ", ".join(f"{child.what} {now - child.started:.0f} s" for child in self.children)

    def stop(self) -> None:
        """Ask the children to stop, as Ctrl-C would, and end those that do not."""
        for child in self.children:
            child.process.send_signal(signal.SIGINT)
        end = time.monotonic() + GRACE_S
        for child in self.children:
            try:
                child.process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()

    def _ended(self, job: Job, reason: str | None, say: Callable[[str], None]) -> None:
        self.done += 1
        if reason is not None:
            self.failures[job.name] = reason
            say(f"{job.name} failed: {reason}")

    def _prepare(self, job: Job, key: str) -> _Child:
        path = _write_settings(job)
        command = ["-m", "raydiff.studies.prepare", str(path)]
        return _start(f"models for {job.name}", command, path.with_suffix(".models.log"), key=key)

    def _run(self, job: Job) -> _Child:
        path = _write_settings(job)
        (job.folder / "summary.json").unlink(missing_ok=True)
        if job.folder.is_dir() and not (job.folder / "metrics.jsonl").is_file():
            shutil.rmtree(job.folder)  # stopped before its first record: nothing that `train` knows as a run
        command = ["-m", "raydiff.cli", "train", str(path), "--runtime", self.runtime, "--on-existing", "overwrite"]
        return _start(job.name, command, path.with_suffix(".log"), job=job)


def models_key(config: Config) -> str:
    """What is alike for runs that share their dataset and models; runs on real data alone share the dataset."""
    sections: Any = {"data"}
    if config.generator.count:
        sections = {"data": True, "denoiser": True, "reward": True, "dynamics": True, "generator": {"method"}}
    return json.dumps(config.model_dump(mode="json", include=sections), sort_keys=True)


def _start(what: str, command: list[str], log: Path, key: str | None = None, job: Job | None = None) -> _Child:
    """A Python process in a session of its own, so that Ctrl-C reaches it once: from here."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    return _Child(what, process, log, time.monotonic(), key, job)


def _settings(job: Job) -> Path:
    return job.folder.with_name(f"{job.folder.name}.yaml")


def _write_settings(job: Job) -> Path:
    path = _settings(job)
    try:
        with whole_file(path) as part:
            part.write_text(dump(job.config))
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}). Choose another folder with --out."
        ) from None
    return path


def _changed(path: Path, config: Config) -> str:
    """The first setting in which a finished run differs; empty where it does not. Folders are not compared."""
    try:
        old = _flat(load_config(path).model_dump(mode="json"))
    except UserError as error:
        return f"its settings are of another version: {error}"
    new = _flat(config.model_dump(mode="json"))
    for key in new:
        if key not in ("output", "data.cache") and old.get(key) != new[key]:
            return f"{key} is {old.get(key)} there and {new[key]} here"
    return ""


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


@contextmanager
def terminations_interrupt() -> Iterator[None]:
    """Inside, SIGTERM is Ctrl-C, so that no run is left behind. Only the main thread may set that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
