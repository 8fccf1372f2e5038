from __future__ import annotations

import socket
from pathlib import Path

import pytest

from raydiff.errors import UserError
from raydiff.runtime.address import JOB, Address, check_reachable, find_address, prepare_environment


def test_without_an_address_a_run_starts_its_own_ray_even_beside_a_cluster() -> None:
    assert find_address(None, {}) is None
    assert find_address(None, {"RAY_ADDRESS": "10.0.0.5:6379"}) is None
    assert find_address("", {"RAY_ADDRESS": "10.0.0.5:6379"}) is None
    assert find_address(None, {JOB: "{}"}) is None


def test_a_submitted_job_joins_the_cluster_that_it_was_submitted_to() -> None:
    found = find_address(None, {"RAY_ADDRESS": "10.0.0.5:6379", JOB: "{}"})
    assert (str(found), found and found.source) == ("10.0.0.5:6379", "RAY_ADDRESS of the submitted job")


def test_auto_is_the_environment_and_then_what_ray_start_noted(tmp_path: Path) -> None:
    found = find_address("auto", {"RAY_ADDRESS": "10.0.0.5:6379", "TMPDIR": str(tmp_path)})
    assert str(found) == "10.0.0.5:6379"
    with pytest.raises(UserError, match="no running Ray cluster is known"):
        find_address("auto", {"TMPDIR": str(tmp_path)})
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:4000\n")
    for environment in ({"TMPDIR": str(tmp_path)}, {"RAY_TMPDIR": str(tmp_path), "TMPDIR": "/nowhere"}):
        found = find_address("auto", environment)
        assert found is not None
        assert (str(found), found.noted) == ("127.0.0.1:4000", True)


@pytest.mark.parametrize("text", ["10.0.0.5", "10.0.0.5:", ":6379", "http://10.0.0.5:8265", "head:99999", "head:x"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is not the address of a Ray cluster"):
        find_address(text, {})
    with pytest.raises(UserError, match=f"RAY_ADDRESS={text}"):
        find_address("auto", {"RAY_ADDRESS": text})


@pytest.mark.parametrize(("setting", "environment"), [
    ("ray://10.0.0.5:10001", {}), ("auto", {"RAY_ADDRESS": "ray://10.0.0.5:10001"}),
    (None, {"RAY_ADDRESS": "ray://10.0.0.5:10001", JOB: "{}"}),
])  # fmt: skip
def test_the_ray_client_is_refused_with_the_reason(setting: str | None, environment: dict[str, str]) -> None:
    with pytest.raises(UserError) as error:
        find_address(setting, environment)
    for part in ("ray://10.0.0.5:10001", "proxy", "--address auto", "ray job submit"):
        assert part in str(error.value)


@pytest.mark.parametrize(("text", "loopback"), [
    ("127.0.0.1:1", True), ("localhost:1", True), ("[::1]:1", True), ("10.0.0.5:1", False), ("head.lan:1", False),
])  # fmt: skip
def test_loopback_is_recognised(text: str, loopback: bool) -> None:
    found = find_address(text, {})
    assert found is not None
    assert (found.loopback, str(found)) == (loopback, text)


def test_the_environment_of_ray_follows_the_address(tmp_path: Path) -> None:
    def prepared(address: Address | None, **variables: str) -> dict[str, str]:
        environment = {"HOME": str(tmp_path), **variables}
        prepare_environment(address, environment)
        return environment

    here, away = Address("127.0.0.1", 1, "x"), Address("10.0.0.5", 1, "x")
    switch = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
    assert [prepared(address)[switch] for address in (None, here, away)] == ["0", "0", "1"]
    assert prepared(None, **{switch: "1"})[switch] == "1"
    assert "RAY_AUTH_MODE" not in prepared(here)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("secret")
    assert prepared(here)["RAY_AUTH_MODE"] == "token"
    assert prepared(Address("10.0.0.5", 1, "x", noted=True))["RAY_AUTH_MODE"] == "token"
    assert "RAY_AUTH_MODE" not in prepared(away)  # this user's token is not shown to a stranger
    assert "RAY_AUTH_MODE" not in prepared(None)
    assert prepared(here, RAY_AUTH_MODE="disabled")["RAY_AUTH_MODE"] == "disabled"


def test_an_address_where_nothing_answers_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with pytest.raises(UserError, match=rf"No Ray cluster answers at 127.0.0.1:{port} \(cluster.address\)"):
        check_reachable(Address("127.0.0.1", port, "cluster.address"))
