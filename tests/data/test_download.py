"""Downloads from a real server on this machine, which breaks off, lies and stalls as real ones do."""

from __future__ import annotations

import hashlib
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from raydiff.data.catalogue import BASE_URL, entry
from raydiff.data.download import dataset_path, download, fetch, sidecar, source_url
from raydiff.errors import UserError

CHUNK = 65_536  # A break between two chunks loses nothing.
CUT = 16 * CHUNK
BODY = np.random.default_rng(0).bytes(3_000_000)
DIGEST = hashlib.sha256(BODY).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves ``body`` under every path; the attributes say how badly."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body = BODY
        self.headers = {"ETag": '"one"', "Last-Modified": "Wed, 01 Jan 2020 00:00:00 GMT"}
        self.ranges = True
        self.lying_range: str | None = None
        self.announced: int | None = None
        self.statuses: list[int] = []  # of the next answers; 200 behind their end
        self.cuts: list[int] = []  # bytes after which the next answers break off
        self.stall_s = 0.0
        self.pace_s = 0.0  # for every 100,000 bytes
        self.requests: list[str] = []
        self.sent: list[int] = []

    def url(self, path: str = "data.hdf5") -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        server, body, start = self.server, self.server.body, 0
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        server.requests.append(self.headers.get("Range", ""))
        if server.statuses and (status := server.statuses.pop(0)) != 200:
            self.send_error(status)
            return
        same = self.headers.get("If-Range") in server.headers.values()
        if wanted and server.ranges and (same or server.lying_range):
            start = int(wanted[1])
            if start >= len(body):
                self.send_error(416)
                return
            self.send_response(206)
            whole = f"bytes {start}-{len(body) - 1}/{len(body)}"
            self.send_header("Content-Range", server.lying_range or whole)
        else:
            self.send_response(200)
        for name, value in server.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(server.announced or len(body) - start))
        self.end_headers()
        end = min(len(body), start + server.cuts.pop(0)) if server.cuts else len(body)
        server.sent.append(end - start)
        time.sleep(server.stall_s)
        try:
            for i in range(start, end, 100_000):
                self.wfile.write(body[i : min(i + 100_000, end)])
                time.sleep(server.pace_s)
        except ConnectionError:
            pass  # The client has given up, as some tests want it to.


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "data.hdf5"


def _failure(server: Server, target: Path, **options: object) -> str:
    with pytest.raises(UserError) as error:
        download(server.url(), target, backoff_s=0.01, **options)  # type: ignore[arg-type]
    assert not target.exists()
    text = str(error.value)
    assert "\n" not in text
    return text


def _part(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def test_whole_file_with_progress_and_hash(server: Server, target: Path) -> None:
    calls: list[tuple[int, int]] = []
    assert download(server.url(), target, sha256=DIGEST, progress=lambda *call: calls.append(call)) == target
    assert target.read_bytes() == BODY
    assert calls[-1] == (len(BODY), len(BODY))
    done = [call[0] for call in calls]
    assert done == sorted(done)
    assert len(set(done)) > 5
    assert sidecar(target).read_text() == f"{DIGEST}  data.hdf5\n"
    assert {path.name for path in target.parent.iterdir()} <= {"data.hdf5", "data.hdf5.sha256", ".data.hdf5.lock"}


def test_broken_transfer_goes_on_where_it_broke(server: Server, target: Path) -> None:
    server.cuts = [CUT, 10 * CHUNK + 5]
    download(server.url(), target, backoff_s=0.01)
    assert target.read_bytes() == BODY
    assert server.sent == [CUT, 10 * CHUNK + 5, len(BODY) - 26 * CHUNK]  # No chunk twice.
    assert server.requests == ["", f"bytes={CUT}-", f"bytes={26 * CHUNK}-"]


def test_later_process_goes_on_behind_the_part(server: Server, target: Path) -> None:
    server.cuts = [CUT, 0, 0, 0, 0]
    assert f"{CUT:,} bytes) is kept" in _failure(server, target)
    assert _part(target).read_bytes() == BODY[:CUT]
    calls: list[tuple[int, int]] = []
    download(server.url(), target, progress=lambda *call: calls.append(call))
    assert target.read_bytes() == BODY
    assert calls[0] == (CUT, len(BODY))
    assert server.sent[-1] == len(BODY) - CUT


def test_progress_that_outlasts_many_breaks(server: Server, target: Path) -> None:
    server.cuts = [6 * CHUNK] * 7  # More breaks than attempts, but each gets further.
    download(server.url(), target, backoff_s=0.01)
    assert target.read_bytes() == BODY
    assert sum(server.sent) == len(BODY)


def test_interruption_keeps_the_part(server: Server, target: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > 1_000_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(server.url(), target, progress=interrupt)
    kept = _part(target).stat().st_size
    assert kept > 1_000_000
    download(server.url(), target)
    assert server.requests[-1] == f"bytes={kept}-"
    assert target.read_bytes() == BODY


def test_changed_file_begins_anew(server: Server, target: Path) -> None:
    server.cuts = [CUT, 0, 0, 0, 0]
    _failure(server, target)
    server.body = np.random.default_rng(1).bytes(2_500_000)
    server.headers = {"ETag": '"two"'}
    download(server.url(), target)
    assert target.read_bytes() == server.body
    assert (server.requests[-1], server.sent[-1]) == (f"bytes={CUT}-", 2_500_000)


@pytest.mark.parametrize(
    ("headers", "content_range"),
    [
        ({"ETag": '"two"'}, f"bytes {CUT}-2999999/3000000"),  # another version
        ({"ETag": '"one"'}, "bytes 900000-2999999/3000000"),  # another place
        ({"ETag": '"one"'}, f"bytes {CUT}-3999999/4000000"),  # another length
        ({"ETag": '"one"'}, "nonsense"),
    ],
)
def test_continuation_of_something_else_is_not_glued_on(
    server: Server, target: Path, headers: dict[str, str], content_range: str
) -> None:
    server.cuts = [CUT, 0, 0, 0, 0]
    _failure(server, target)
    server.headers, server.lying_range = headers, content_range
    download(server.url(), target, backoff_s=0.01)
    assert target.read_bytes() == BODY
    assert server.requests[-2:] == [f"bytes={CUT}-", ""]


def test_shrunken_file_begins_anew(server: Server, target: Path) -> None:
    server.cuts = [CUT, 0, 0, 0, 0]
    _failure(server, target)
    server.body = BODY[:500_000]
    download(server.url(), target, backoff_s=0.01)
    assert target.read_bytes() == BODY[:500_000]
    assert server.requests[-2:] == [f"bytes={CUT}-", ""]


def test_part_of_another_address_is_not_used(server: Server, target: Path) -> None:
    server.cuts = [CUT, 0, 0, 0, 0]
    _failure(server, target)
    download(server.url("elsewhere.hdf5"), target)
    assert server.requests[-1] == ""


@pytest.mark.parametrize("lost", ["ranges", "validators"])
def test_server_that_cannot_resume(server: Server, target: Path, lost: str) -> None:
    if lost == "ranges":
        server.ranges = False
    else:
        server.headers = {}
    server.cuts = [1_000_000, 2_000_000]
    calls: list[int] = []
    download(server.url(), target, backoff_s=0.01, progress=lambda done, total: calls.append(done))
    assert target.read_bytes() == BODY
    assert server.sent == [1_000_000, 2_000_000, len(BODY)]
    assert calls == sorted(calls)  # Anew, but never backwards.


def test_wrong_hash_removes_the_file(server: Server, target: Path) -> None:
    text = _failure(server, target, sha256="0" * 64)
    assert DIGEST in text
    assert "0" * 64 in text
    assert not _part(target).exists()
    assert not sidecar(target).exists()


def test_recorded_hash_guards_the_file_later(server: Server, target: Path) -> None:
    download(server.url(), target)
    assert download(server.url(), target) == target
    assert len(server.requests) == 1
    damaged = BODY[:-1] + bytes([BODY[-1] ^ 1])
    target.write_bytes(damaged)
    with pytest.raises(UserError) as error:
        download(server.url(), target)
    assert DIGEST in str(error.value)
    assert hashlib.sha256(damaged).hexdigest() in str(error.value)
    assert "data.hdf5.sha256" in str(error.value)
    sidecar(target).unlink()
    assert download(server.url(), target) == target  # Nothing is known of a file that the user put there.


@pytest.mark.parametrize(("status", "word"), [(404, "it is not there"), (403, "access is denied"), (401, "401")])
def test_refusals_are_final(server: Server, target: Path, status: int, word: str) -> None:
    server.statuses = [status]
    text = _failure(server, target)
    for part in (server.url(), word, "--data PATH", "D4RL_DATASET_DIR", "raydiff data collect", "RAYDIFF_D4RL_MIRROR"):
        assert part in text
    assert len(server.requests) == 1


def test_overloaded_server_is_asked_again(server: Server, target: Path) -> None:
    server.statuses = [503, 429]
    download(server.url(), target, backoff_s=0.01)
    assert target.read_bytes() == BODY
    assert len(server.requests) == 3
    server.statuses = [500] * 9
    target.unlink()
    assert "500" in _failure(server, target)
    assert len(server.requests) == 7


def test_backoff_grows(server: Server, target: Path) -> None:
    server.statuses = [503, 503, 503]
    start = time.monotonic()
    download(server.url(), target, backoff_s=0.05)
    assert time.monotonic() - start >= 0.05 + 0.1 + 0.2


def test_silent_server_times_out(server: Server, target: Path) -> None:
    server.stall_s = 0.6
    start = time.monotonic()
    text = _failure(server, target, timeout_s=0.1)
    assert "silent for 0.1 s" in text
    assert "--data PATH" in text
    assert time.monotonic() - start < 5


def test_nobody_listens(target: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/data.hdf5"
        with pytest.raises(UserError, match=r"Connection refused.*--data PATH"):
            download(url, target, backoff_s=0.01)


@pytest.mark.parametrize("url", ["data.hdf5", "ftp://127.0.0.1/data.hdf5", "http:///data.hdf5"])
def test_address_that_is_none(target: Path, url: str) -> None:
    with pytest.raises(UserError, match="no address to download from"):
        download(url, target)


def test_no_room_is_seen_before_the_transfer(server: Server, target: Path) -> None:
    server.announced = 10**18
    text = _failure(server, target)
    assert "1,000,000,000,000,000,000 bytes" in text
    assert "D4RL_DATASET_DIR" in text


def test_disk_that_fills_up(server: Server, target: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no device that is always full")
    target.parent.mkdir()
    _part(target).symlink_to(full)
    assert "no space left" in _failure(server, target)


def test_folder_that_cannot_be_made(server: Server, tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file")
    assert "D4RL_DATASET_DIR" in _failure(server, tmp_path / "folder" / "data.hdf5")


def test_two_processes_share_one_transfer(server: Server, target: Path) -> None:
    server.pace_s = 0.02
    code = (
        "import sys; from pathlib import Path; from raydiff.data.download import download; calls = [];"
        "download(sys.argv[1], Path(sys.argv[2]), progress=lambda done, total: calls.append(done));"
        "assert calls == sorted(calls); print('done')"
    )
    command = [sys.executable, "-c", code, server.url(), str(target)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in "ab"]
    for process in processes:
        output, _ = process.communicate(timeout=60)
        assert (process.returncode, output) == (0, "done\n")
    assert target.read_bytes() == BODY
    assert server.sent == [len(BODY)]


def test_dataset_of_d4rl_from_a_mirror(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = entry("hopper-medium-replay-v2")
    monkeypatch.delenv("RAYDIFF_D4RL_MIRROR", raising=False)
    monkeypatch.delenv("D4RL_DATASET_DIR", raising=False)
    assert source_url(known) == known.url == f"{BASE_URL}/gym_mujoco_v2/hopper_medium_replay-v2.hdf5"
    assert dataset_path(known.id) == Path.home() / ".d4rl" / "datasets" / "hopper_medium_replay-v2.hdf5"
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    monkeypatch.setenv("RAYDIFF_D4RL_MIRROR", server.url("mirror/"))
    assert source_url(known) == server.url("mirror/gym_mujoco_v2/hopper_medium_replay-v2.hdf5")
    assert fetch(known.id) == tmp_path / "hopper_medium_replay-v2.hdf5"
    assert fetch(known.id).read_bytes() == BODY
    assert len(server.requests) == 1
    with pytest.raises(UserError, match="hopper-medium-v2"):
        fetch("hopper-mediun-v2")
