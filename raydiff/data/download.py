"""Files fetched over HTTP, whole and verified or not at all: D4RL's datasets, kept where D4RL itself keeps them.

What has arrived of a file lies in ``NAME.part``, with the server's mark of the file (``ETag`` or ``Last-Modified``)
in ``NAME.part.json``, and the next attempt goes on behind it; a file that changed on the server in between begins
anew. D4RL publishes no hashes over its plain HTTP, so the SHA-256 of the first download is recorded in
``NAME.sha256`` and the file is held against it whenever it is fetched again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import requests
from filelock import FileLock, Timeout

from raydiff.data.catalogue import BASE_URL, CatalogueEntry, entry
from raydiff.errors import UserError

Progress = Callable[[int, int], None]
MIRROR_VARIABLE = "RAYDIFF_D4RL_MIRROR"
"""Base address that stands in for D4RL's own, such as ``http://mirror.example/offline_rl``."""

_CHUNK = 1 << 16  # A transfer that breaks off loses what has arrived of the chunk.
_ATTEMPTS = 4
_GIVEN_OTHERWISE = (
    "Otherwise get the file by other means and give it by --data PATH, or put it into the folder that "
    "D4RL_DATASET_DIR names (by default ~/.d4rl/datasets), or collect a dataset here by raydiff data collect."
)


class _Broken(Exception):
    """A transfer that may go better if it is tried again."""


def dataset_path(id: str) -> Path:
    """Where the file of a D4RL dataset lies or will lie: ``$D4RL_DATASET_DIR`` or ``~/.d4rl/datasets``, as for D4RL."""
    folder = os.environ.get("D4RL_DATASET_DIR") or "~/.d4rl/datasets"
    return Path(os.path.expanduser(folder)) / entry(id).file_name


def source_url(known: CatalogueEntry) -> str:
    """The address that a dataset is downloaded from: D4RL's own, or the mirror's of ``RAYDIFF_D4RL_MIRROR``."""
    return f"{(os.environ.get(MIRROR_VARIABLE) or BASE_URL).rstrip('/')}/{known.location}"


def fetch(id: str, progress: Progress | None = None) -> Path:
    """The file of a D4RL dataset, downloaded if it is not there yet.

    ``progress(done, total)`` counts bytes. Raises ``UserError`` for an unknown id, a file that is no longer what was
    downloaded, and all that ``download`` raises.
    """
    path = dataset_path(id)
    return download(source_url(entry(id)), path, progress=progress)


def download(
    url: str,
    path: str | Path,
    sha256: str | None = None,
    progress: Progress | None = None,
    timeout_s: float = 30.0,
    backoff_s: float = 0.5,
) -> Path:
    """Bring ``url`` to ``path`` and return it; a file that is already there is verified and kept.

    It must have the hash ``sha256`` or, without one, the one recorded by its first download. ``timeout_s`` is the
    longest silence of the server. Broken transfers are resumed after ``backoff_s``, doubled each time, up to four
    times without getting further. ``progress(done, total)`` counts bytes, never backwards; the total is 0 while it
    is unknown. Of several processes one downloads and the others wait for it. Everything that prevents it is a
    ``UserError`` that says what to do instead.
    """
    path = Path(os.path.expanduser(path))
    meter = _Meter(progress)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            return _verified(path, sha256)
        with _Lock(path, meter):
            if path.is_file():
                return _verified(path, sha256)
            part = _Part(path, url)
            _transfer(part, meter, timeout_s, backoff_s)
            found = _hash(part.path)
            if sha256 and found != sha256:
                part.remove()
                raise UserError(
                    f"{url}: the downloaded file has the SHA-256 {found}, but {sha256} was expected. It was removed; "
                    f"it is another file or was damaged on its way, so download it again. {_GIVEN_OTHERWISE}"
                )
            _record(path, found)
            os.replace(part.path, path)
            part.remove()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"{path}: there is no space left. Free some, or set D4RL_DATASET_DIR to a folder with more; what has "
                f"arrived so far is kept in {path.name}.part and is not downloaded again."
            ) from error
        raise UserError(
            f"{path}: the file cannot be kept there ({error.strerror or error}). Set D4RL_DATASET_DIR to a folder with "
            "write permission."
        ) from error
    return path


# ------------------------------------------------------------------------------------------------------ verification


def sidecar(path: Path) -> Path:
    """Where the hash of a downloaded file is recorded, in the format of ``sha256sum``."""
    return path.with_name(f"{path.name}.sha256")


def _verified(path: Path, sha256: str | None) -> Path:
    expected = sha256 or _recorded(path)
    if expected and (found := _hash(path)) != expected:
        recorded = "was expected" if sha256 else f"was recorded when it was downloaded ({sidecar(path).name})"
        raise UserError(
            f"{path}: the file has the SHA-256 {found}, but {expected} {recorded}. It was changed or damaged since; "
            f"remove both files to download it again, or only {sidecar(path).name} if the change was intended."
        )
    return path


def _recorded(path: Path) -> str | None:
    try:
        words = sidecar(path).read_text().split()
    except FileNotFoundError:
        return None
    return words[0] if words else None


def _record(path: Path, digest: str) -> None:
    temporary = path.with_name(f".{path.name}.sha256.{os.getpid()}")
    temporary.write_text(f"{digest}  {path.name}\n")
    os.replace(temporary, sidecar(path))


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------------------------------------------------- transfer


class _Meter:
    """Reports bytes, never backwards: a transfer that begins anew stands still until it is past the one before."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._furthest = 0

    def __call__(self, done: int, total: int) -> None:
        self._furthest = max(self._furthest, done)
        if self._progress is not None:
            self._progress(self._furthest, total)


class _Part:
    """What has arrived of a file, and of which version of it."""

    def __init__(self, target: Path, url: str) -> None:
        self.path = target.with_name(f"{target.name}.part")
        self.url = url
        self.total = 0
        self.validator = ""
        self._about = target.with_name(f"{target.name}.part.json")
        try:
            about = json.loads(self._about.read_text())
            if about["url"] == url:
                self.total, self.validator = int(about["total"]), str(about["validator"])
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            pass  # Nothing has arrived, or nothing that can be told apart: begin anew.

    @property
    def size(self) -> int:
        """Bytes that can be built upon: none where the version of the file is not known."""
        try:
            return self.path.stat().st_size if self.validator else 0
        except FileNotFoundError:
            return 0

    @property
    def complete(self) -> bool:
        return 0 < self.total == self.size

    def begin(self, total: int, validator: str) -> None:
        """Note the version that is about to arrive, before its first byte does."""
        self.path.open("wb").close()
        self.total, self.validator = total, validator
        self._about.write_text(json.dumps({"url": self.url, "total": total, "validator": validator}))

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self._about.unlink(missing_ok=True)
        self.total, self.validator = 0, ""


def _transfer(part: _Part, meter: _Meter, timeout_s: float, backoff_s: float) -> None:
    """Try until all bytes are there. An attempt that gets further than all before it does not count as failed."""
    failures, furthest = 0, part.size
    while not part.complete:
        meter(part.size, part.total)
        try:
            _attempt(part, meter, timeout_s)
            return
        except _Broken as error:
            reached = part.size
            failures = 0 if reached > furthest else failures + 1
            furthest = max(furthest, reached)
            if failures >= _ATTEMPTS:
                raise UserError(
                    f"{part.url} cannot be downloaded: {error}, {_ATTEMPTS} times in a row. Try again later; what has "
                    f"arrived so far ({reached:,} bytes) is kept. {_GIVEN_OTHERWISE}"
                ) from error
        time.sleep(backoff_s * 2 ** max(failures - 1, 0))


def _attempt(part: _Part, meter: _Meter, timeout_s: float) -> None:
    """One request, for what is missing. Raises ``_Broken`` where another one may help."""
    offset = part.size
    headers = {"Accept-Encoding": "identity", "User-Agent": "raydiff"}
    if offset:
        headers |= {"Range": f"bytes={offset}-", "If-Range": part.validator}
    try:
        with requests.get(part.url, headers=headers, stream=True, timeout=timeout_s) as response:
            if response.status_code == requests.codes.partial_content and offset:
                _check_continuation(part, response, offset)
            elif response.status_code == requests.codes.ok:
                offset = 0
                part.begin(int(response.headers.get("Content-Length") or 0), _validator(response))
            else:
                _refused(part, response)
            _check_space(part, offset)
            with open(part.path, "ab") as file:
                received = _receive(part, meter, response, file, offset)
    except (requests.exceptions.MissingSchema, requests.exceptions.InvalidSchema, requests.exceptions.InvalidURL) as e:
        raise UserError(f"{part.url} is no address to download from ({e}). Check {MIRROR_VARIABLE}.") from e
    except requests.exceptions.RequestException as error:
        raise _Broken(_cause(error, timeout_s)) from error
    if part.total and received != part.total:
        raise _Broken(f"the server ended the transfer after {received:,} of {part.total:,} bytes")


def _receive(part: _Part, meter: _Meter, response: requests.Response, file: BinaryIO, done: int) -> int:
    for block in response.iter_content(_CHUNK):
        file.write(block)
        done += len(block)
        meter(done, part.total)
    return done


def _validator(response: requests.Response) -> str:
    """What tells this version of the file from others, fit for ``If-Range`` (RFC 9110, section 13.1.5)."""
    tag = response.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")


def _check_continuation(part: _Part, response: requests.Response, offset: int) -> None:
    """A server that continues another version or at another place must not be glued to the part."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    total = int(match[2]) if match and match[2] != "*" else part.total
    if match and int(match[1]) == offset and total == part.total and _validator(response) in ("", part.validator):
        return
    part.remove()
    raise _Broken("the file changed on the server, so it begins anew")


def _refused(part: _Part, response: requests.Response) -> None:
    status = f"{response.status_code} {response.reason}"
    if response.status_code == requests.codes.requested_range_not_satisfiable:
        part.remove()
        raise _Broken("the file on the server is shorter than what had arrived of it, so it begins anew")
    if response.status_code >= 500 or response.status_code in (
        requests.codes.timeout,
        requests.codes.too_many_requests,
    ):
        raise _Broken(f"the server answers {status}")
    meaning = {404: "it is not there (any more)", 410: "it is not there any more", 403: "access is denied"}
    raise UserError(
        f"{part.url} cannot be downloaded: the server answers {status}, "
        f"{meaning.get(response.status_code, 'which trying again does not change')}. A mirror of D4RL's server can be "
        f"named by {MIRROR_VARIABLE}. {_GIVEN_OTHERWISE}"
    )


def _check_space(part: _Part, offset: int) -> None:
    missing, free = part.total - offset, shutil.disk_usage(part.path.parent).free
    if missing > free:
        raise UserError(
            f"{part.path.parent}: {missing:,} bytes are still to be downloaded, but only {free:,} are free there. Free "
            "some, or set D4RL_DATASET_DIR to a folder with enough space."
        )


def _cause(error: BaseException, timeout_s: float) -> str:
    """What happened to the connection: the innermost of the exceptions that wrap each other."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    if isinstance(error, TimeoutError):
        return f"the server was silent for {timeout_s:g} s"
    return f"the server cannot be reached or broke off ({type(error).__name__}: {error})"


class _Lock:
    """Only one process downloads a file; the others see it grow meanwhile."""

    def __init__(self, path: Path, meter: _Meter) -> None:
        self._part = path.with_name(f"{path.name}.part")
        self._lock = FileLock(path.with_name(f".{path.name}.lock"))
        self._meter = meter

    def __enter__(self) -> None:
        while True:
            try:
                self._lock.acquire(timeout=0.5)
                return
            except Timeout:
                self._meter(self._part.stat().st_size if self._part.exists() else 0, 0)

    def __exit__(self, *_: object) -> None:
        self._lock.release()
