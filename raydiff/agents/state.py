"""A learner's state as a flat dictionary of tensors, as safetensors files hold it, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from raydiff.agents.networks import MLP, Adam
from raydiff.agents.streams import Streams

Part = MLP | Tensor | Adam | torch.Generator | Streams


def save_parts(parts: Mapping[str, Part], updates: int) -> dict[str, Tensor]:
    """Copies of every tensor of the named parts, and the update counter ``[]`` int64 as ``updates``."""
    state = {"updates": torch.tensor(updates)}
    for name, part in parts.items():
        if isinstance(part, torch.Generator | Streams):
            state[name] = part.get_state()
        else:
            state |= {key: tensor.detach().clone() for key, tensor in _tensors(name, part).items()}
    return state


def load_parts(parts: Mapping[str, Part], state: Mapping[str, Tensor]) -> int:
    """Copy a saved state into the parts and return the update counter. Raises ``ValueError`` when names or shapes
    differ; nothing has been changed then."""
    live = {key: tensor for name, part in parts.items() for key, tensor in _tensors(name, part).items()}
    generators = {name: part for name, part in parts.items() if isinstance(part, torch.Generator | Streams)}
    shapes = {key: tensor.shape for key, tensor in live.items()}
    shapes |= {name: generator.get_state().shape for name, generator in generators.items()}
    shapes["updates"] = torch.Size()
    differing = sorted(
        key
        for key in shapes.keys() | state.keys()
        if key not in shapes or key not in state or shapes[key] != state[key].shape
    )
    if differing:
        raise ValueError(f"the saved state belongs to another learner: it differs in {', '.join(differing)}")
    with torch.no_grad():
        for key, tensor in live.items():
            tensor.copy_(state[key])
    for name, generator in generators.items():
        generator.set_state(state[name].cpu())
    return int(state["updates"])


class Resumable(ABC):
    """What a learner needs to be saved and to go on bit by bit: ``_parts()`` names everything that it owns."""

    updates: int

    @abstractmethod
    def _parts(self) -> Mapping[str, Part]: ...

    def state_dict(self) -> dict[str, Tensor]:
        """As ``api.Agent.state_dict``."""
        return save_parts(self._parts(), self.updates)

    def member_state(self, member: int) -> dict[str, Tensor]:
        """Of a learner with several seeds, what ``state_dict`` of the one with seed ``member`` alone would be."""
        return member_parts(self._parts(), self.updates, member)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """As ``api.Agent.load_state_dict``."""
        self.updates = load_parts(self._parts(), state)


def member_parts(parts: Mapping[str, Part], updates: int, member: int) -> dict[str, Tensor]:
    """Of a learner with several seeds, the state as ``save_parts`` gives it for the one with seed ``member`` alone.

    Networks tell which of their weights are the member's, and so which of their moments; other tensors that are trained
    have a row for each seed; whatever is not trained is the same for all.
    """
    networks = {id(part.flat): part for part in parts.values() if isinstance(part, MLP)}
    trained = {id(each) for part in parts.values() if isinstance(part, Adam) for each in part.parameters}

    def own(values: Tensor, parameter: Tensor) -> Tensor:
        if id(parameter) in networks:
            return networks[id(parameter)].member(values, member)
        return values.detach()[member, 0].clone() if id(parameter) in trained else values.detach().clone()

    state = {"updates": torch.tensor(updates)}
    for name, part in parts.items():
        if isinstance(part, Streams):
            state[name] = part.get_state()[member].clone()
        elif isinstance(part, Adam):
            for index, parameter in enumerate(part.parameters):
                state[f"{name}.{index}.first_moment"] = own(part.first_moments[index], parameter)
                state[f"{name}.{index}.second_moment"] = own(part.second_moments[index], parameter)
                state[f"{name}.{index}.step"] = part.steps[index].clone()
        elif isinstance(part, MLP):
            state[name] = own(part.flat, part.flat)
        elif isinstance(part, Tensor):
            state[name] = own(part, part)
    return state


def _tensors(name: str, part: Part) -> dict[str, Tensor]:
    """The live tensors of a part under their names; a random generator has none."""
    if isinstance(part, torch.Generator | Streams):
        return {}
    if isinstance(part, Tensor):
        return {name: part}
    if isinstance(part, MLP):
        return {name: part.flat}
    return {f"{name}.{key}": tensor for key, tensor in part.tensors().items()}
