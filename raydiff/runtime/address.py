"""Which Ray a run uses, decided before Ray is imported: one of its own, or a cluster that it joins.

``cluster.address`` decides. Empty, the run starts a Ray of its own on this machine, even where ``RAY_ADDRESS`` is
set; only the entry point of ``ray job submit`` joins the cluster that it was submitted to. ``auto`` means
``RAY_ADDRESS``, else the cluster that was last started on this machine (where ``ray start`` notes it).
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, replace
from pathlib import Path

from raydiff.errors import UserError

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the entry point of a submitted job, beside RAY_ADDRESS
CONNECT_S = 3.0


@dataclass(frozen=True)
class Address:
    """A running cluster; ``source`` says where the address was found, ``noted`` that ``ray start`` noted it here."""

    host: str
    port: int
    source: str
    noted: bool = False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether only processes of this machine can reach it."""
        if self.host == "localhost":
            return True
        with contextlib.suppress(ValueError):
            return ipaddress.ip_address(self.host).is_loopback
        return False


def find_address(setting: str | None, environment: Mapping[str, str]) -> Address | None:
    """The cluster to join, or None where the run starts Ray itself.

    Raises ``UserError`` for ``ray://``, for what is no address, and for ``auto`` where no cluster is known.
    """
    given = environment.get("RAY_ADDRESS", "")
    if not setting:
        return _parse(given, "RAY_ADDRESS of the submitted job") if JOB in environment and given else None
    if setting != "auto":
        return _parse(setting, "cluster.address")
    if given and given != "auto":
        return _parse(given, "RAY_ADDRESS")
    pointer = _pointer(environment)
    noted = pointer.read_text().strip() if pointer.is_file() else ""
    if not noted:
        raise UserError(
            f"--address auto: no running Ray cluster is known on this machine (RAY_ADDRESS is not set, and {pointer} "
            "does not exist). Start one with `launch/local.sh start` or `ray start --head`, or give HOST:PORT."
        )
    return replace(_parse(noted, str(pointer)), noted=True)


def _pointer(environment: Mapping[str, str]) -> Path:
    """Where ``ray start`` notes the address of the cluster that it started last."""
    folder = environment.get("RAY_TMPDIR") or environment.get("TMPDIR") or "/tmp"
    return Path(folder) / "ray" / "ray_current_cluster"


def _parse(text: str, source: str) -> Address:
    if text.startswith("ray://"):
        raise UserError(
            f"{source}={text}: the Ray client (ray://) is not supported, because every block and every policy would "
            "pass through its one proxy process, which would also own them. Run raydiff on a node of the cluster with "
            "--address auto, or submit it with `ray job submit -- raydiff train ...`."
        )
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if "://" in text or not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(
            f"{source}={text} is not the address of a Ray cluster. Use auto, or HOST:PORT as `ray start --head` prints "
            "it, for example 10.0.0.5:6379."
        )
    return Address(host, int(port), source)


def check_reachable(address: Address) -> None:
    """Raise ``UserError`` within seconds where nothing answers at all."""
    try:
        with socket.create_connection((address.host, address.port), timeout=CONNECT_S):
            pass
    except OSError as error:
        raise UserError(
            f"No Ray cluster answers at {address} ({address.source}): {error.strerror or error}. Check the address "
            "that `ray start --head` printed, and that the cluster still runs."
        ) from None


def prepare_environment(address: Address | None, environment: MutableMapping[str, str] = os.environ) -> None:
    """Set what Ray reads when it is imported; what is set already stays.

    Ray binds every port to loopback when it believes that it serves this machine alone. A cluster on loopback, or one
    that ``ray start`` noted here, is spoken to with this user's token where there is one, as Ray's own ``auto`` does.
    """
    here = address is None or address.loopback
    environment.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0" if here else "1")
    token = Path(environment.get("HOME", "~")).expanduser() / ".ray" / "auth_token"
    known = token.is_file() or "RAY_AUTH_TOKEN" in environment or "RAY_AUTH_TOKEN_PATH" in environment
    if address is not None and known and (address.loopback or address.noted):
        environment.setdefault("RAY_AUTH_MODE", "token")
