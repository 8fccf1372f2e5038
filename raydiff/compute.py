"""How this process computes on the CPU: its threads, and which library multiplies float32 matrices.

Torch's bundled MKL takes a slower path on AMD processors. Torch lets oneDNN multiply float32 matrices instead when
it may use bfloat16 internally. On processors without AMX it does not use bfloat16 and the result stays at float32
accuracy; with AMX it would. So the accuracy is probed, and the choice is the same every time on a machine: nothing
here is timed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from raydiff.errors import UserError

MatmulChoice = Literal["auto", "default", "onednn"]

PROBE_SIZE = 256
"""Inner dimension of the probed product: the width of the usual hidden layers."""
PROBE_LIMIT = 1e-4
"""Largest error of a float32 product of that size; bfloat16 gives about 0.1."""
CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class ComputeReport:
    """What was set: ``threads`` of this process, the library of float32 products, and why, in one sentence."""

    threads: int
    matmul: Literal["default", "onednn"]
    reason: str

    def __str__(self) -> str:
        return f"{self.threads} thread{'s' if self.threads > 1 else ''}, matmul {self.matmul}: {self.reason}"


def configure_compute(threads: int, matmul: MatmulChoice) -> ComputeReport:
    """Set the threads of this process and the route of float32 matrix products on the CPU.

    ``matmul``: ``default`` leaves them to torch, ``onednn`` routes them to oneDNN, and ``auto`` does so on AMD
    processors where a probe shows float32 accuracy. Raises ``UserError`` for a thread count below one, and for
    ``onednn`` where this torch cannot do it.
    """
    if threads < 1:
        raise UserError(f"{threads} threads were asked of a process; give it at least 1 (its share of CPUs, rounded).")
    torch.set_num_threads(threads)
    backend = _onednn_backend()
    if backend is None:
        if matmul == "onednn":
            raise UserError(
                f"matmul is set to onednn, but torch {torch.__version__} cannot route float32 products to oneDNN. "
                "Set it to auto or default, or install torch 2.11 or later with oneDNN."
            )
        return ComputeReport(threads, "default", "this torch cannot route float32 products to oneDNN")
    backend.fp32_precision = "none"
    if matmul == "default":
        return ComputeReport(threads, "default", "as configured")
    if matmul == "auto" and not _is_amd():
        return ComputeReport(threads, "default", "the processor is not from AMD, so MKL is already fast")
    backend.fp32_precision = "bf16"
    error = _probe_error()
    if matmul == "auto" and not error < PROBE_LIMIT:
        backend.fp32_precision = "none"
        return ComputeReport(threads, "default", f"oneDNN's products are off by {error:.1e}, which is not float32")
    why = "as configured" if matmul == "onednn" else "AMD processor"
    return ComputeReport(threads, "onednn", f"{why}, largest error at K = {PROBE_SIZE} is {error:.1e}")


def _onednn_backend() -> Any | None:
    """Torch's switch for matrix products in oneDNN, or None where this build or version has none."""
    mkldnn = torch.backends.mkldnn
    backend = getattr(mkldnn, "matmul", None)
    return backend if mkldnn.is_available() and hasattr(backend, "fp32_precision") else None


def _is_amd() -> bool:
    try:
        return "AuthenticAMD" in CPU_INFO.read_text()
    except OSError:
        return False


def _probe_error() -> float:
    """Largest deviation of a float32 product of standard normal matrices from the float64 product."""
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, PROBE_SIZE, PROBE_SIZE, generator=generator)
    return float((torch.mm(left, right).double() - torch.mm(left.double(), right.double())).abs().max())
