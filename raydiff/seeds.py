"""Randomness keyed by what is drawn, never by who draws it."""

from __future__ import annotations

import hashlib


def key_seed(*parts: int | str) -> int:
    """A 63-bit seed from a key such as ``(run seed, learner id, "shard", 7)``; the same on every machine."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
