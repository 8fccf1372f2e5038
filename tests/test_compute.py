"""Threads and the route of matrix products are set as reported, and the choice needs float32 accuracy."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from raydiff import compute
from raydiff.compute import ComputeReport, configure_compute
from raydiff.errors import UserError


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    threads, precision = torch.get_num_threads(), torch.backends.mkldnn.matmul.fp32_precision
    yield
    torch.set_num_threads(threads)
    torch.backends.mkldnn.matmul.fp32_precision = precision


def precision() -> str:
    return torch.backends.mkldnn.matmul.fp32_precision


def test_default_leaves_products_alone_and_sets_threads() -> None:
    report = configure_compute(1, "default")
    assert report == ComputeReport(1, "default", "as configured")
    assert torch.get_num_threads() == 1
    assert precision() == "none"


def test_onednn_is_switched_on_and_off_again() -> None:
    assert configure_compute(1, "onednn").matmul == "onednn"
    assert precision() == "bf16"
    configure_compute(1, "default")
    assert precision() == "none"


def test_auto_is_reproducible_and_accurate() -> None:
    first, second = configure_compute(1, "auto"), configure_compute(1, "auto")
    assert first == second
    assert precision() == ("bf16" if first.matmul == "onednn" else "none")
    left, right = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(1))
    error = ((left @ right).double() - left.double() @ right.double()).abs().max()
    assert error < 1e-4


@pytest.mark.parametrize(
    ("vendor", "error", "expected"),
    [("AuthenticAMD", 4e-5, "onednn"), ("AuthenticAMD", 0.1, "default"), ("GenuineIntel", 4e-5, "default")],
)
def test_auto_needs_amd_and_accuracy(tmp_path, monkeypatch, vendor: str, error: float, expected: str) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    monkeypatch.setattr(compute, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(compute, "_probe_error", lambda: error)
    assert configure_compute(1, "auto").matmul == expected
    assert precision() == ("bf16" if expected == "onednn" else "none")


def test_torch_without_the_switch(monkeypatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert configure_compute(1, "auto").matmul == "default"
    with pytest.raises(UserError, match="cannot route"):
        configure_compute(1, "onednn")


def test_no_threads_is_an_error() -> None:
    with pytest.raises(UserError, match="at least 1"):
        configure_compute(0, "auto")
