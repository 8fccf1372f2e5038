"""Random streams of a learner: one, or one for each of several seeds that are trained beside each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Streams:
    """Generators on the device, seeded in turn from those that drew the first weights. Each seed draws from its own, so
    that it gets what it would get alone."""

    def __init__(self, origins: Sequence[torch.Generator], device: torch.device | str) -> None:
        self.generators = [torch.Generator(device) for _ in origins]
        for generator, origin in zip(self.generators, origins, strict=True):
            generator.manual_seed(int(torch.randint(2**62, (), generator=origin)))

    def normal_(self, values: Tensor, std: float) -> Tensor:
        """Overwrite ``values`` by normal noise: of one stream, or ``[N, ...]`` of N streams."""
        for part, generator in self._each(values):
            part.normal_(0, std, generator=generator)
        return values

    def uniform_(self, values: Tensor) -> Tensor:
        """Overwrite ``values`` by uniform draws from [0, 1), as ``normal_``."""
        for part, generator in self._each(values):
            part.uniform_(generator=generator)
        return values

    def _each(self, values: Tensor) -> zip[tuple[Tensor, torch.Generator]]:
        parts = [values] if len(self.generators) == 1 else list(values)
        return zip(parts, self.generators, strict=True)

    def get_state(self) -> Tensor:
        """State of the one stream ``[k]``, or of all ``[N, k]``, on the host."""
        states = [generator.get_state() for generator in self.generators]
        return states[0] if len(states) == 1 else torch.stack(states)

    def set_state(self, state: Tensor) -> None:
        """Go on from ``get_state()``."""
        for part, generator in zip(state.view(len(self.generators), -1), self.generators, strict=True):
            generator.set_state(part.clone())  # torch reads from the start of the storage
