"""DyDiff's iteration: states for given actions, actions for given states, in turn (section D.5).

Pure functions of tensors in environment units and of any float dtype, so that they run against exact models too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from raydiff.guidance.api import ActionDistribution, DrawnActions

Step = Callable[[Tensor, Tensor], Tensor]
"""``step(observation [n, S], action [n, A]) -> next observation [n, S]``: a one-step model."""

DrawStates = Callable[[Tensor, Tensor], Tensor]
"""``draw(first [n, S], actions [n, L, A]) -> states [n, L, S]``: a trajectory model of the states of given actions."""


class RowActions:
    """The actions of a policy in the rows of trajectories, as a function of the states alone.

    A row's action is ``mean(s) + std(s) * noise`` with the row's own standard normal ``noise [n, L, A]``, clipped to
    +-1, or what a diffusion policy makes of its noise ``[n, L, D]``; None takes the mean. The noise stays the same
    through all iterations: drawn anew in each, the actions would never fit the states that the model gave for the last
    ones.
    """

    def __init__(self, policy: ActionDistribution, noise: Tensor | None) -> None:
        self.policy, self.noise = policy, noise

    def __call__(self, states: Tensor, first: int = 0) -> Tensor:
        """Actions ``[n, R, A]`` for ``states [n, R, S]``, which are those of the rows from ``first`` on."""
        noise = None if self.noise is None else self.noise[:, first : first + states.shape[1]]
        if noise is not None and isinstance(self.policy, DrawnActions):
            return self.policy.draw(states, noise)
        mean, variance = self.policy.distribution(states)
        if variance is not None and noise is not None:
            mean = torch.addcmul(mean, variance.sqrt(), noise)
        return mean.clamp(-1.0, 1.0)


class FixedActions:
    """The same ``actions [n, L, A]`` whatever the states."""

    def __init__(self, actions: Tensor) -> None:
        self.actions = actions

    def __call__(self, states: Tensor, first: int = 0) -> Tensor:
        return self.actions[:, first : first + states.shape[1]]


Act = RowActions | FixedActions


def roll_out(step: Step, first: Tensor, act: Act, length: int) -> tuple[Tensor, Tensor]:
    """States ``[n, L, S]`` and actions ``[n, L, A]`` of the one-step model and the policy, from ``first [n, S]``."""
    states, actions = [first], [act(first[:, None])[:, 0]]
    for row in range(1, length):
        states.append(step(states[-1], actions[-1]))
        actions.append(act(states[-1][:, None], row)[:, 0])
    return torch.stack(states, dim=1), torch.stack(actions, dim=1)


def iterate(
    draw: DrawStates,
    states: Tensor,
    actions: Tensor,
    act: Act,
    iterations: int,
    update: Literal["replace", "average"],
) -> tuple[Tensor, Tensor]:
    """``iterations`` times: new states for the actions, taken as they are (the paper) or averaged with the states
    before (the released code), then the policy's actions in them. The first state stays."""
    for _ in range(iterations):
        drawn = draw(states[:, 0], actions)
        states = drawn if update == "replace" else torch.lerp(states, drawn, 0.5)
        actions = act(states)
    return states, actions


def stop_at_terminals(states: Tensor, actions: Tensor, reward: Tensor, terminal: Tensor) -> Tensor:
    """Trajectories as rows ``[n, L, S+A+2]``, columns observation | action | reward | terminal.

    ``states [n, L, S]``, ``actions [n, L, A]``, ``reward [n, H]`` and ``terminal [n, H]`` (bool) of the transitions.
    Behind the first terminal transition its successor is repeated as an absorbing row (no action, no reward,
    terminal), as in the data (section A.5). The last row has a state only.
    """
    n, horizon = terminal.shape
    row = torch.arange(horizon + 1, device=states.device)
    ended = torch.cat([terminal.new_zeros(n, 1), terminal.cumsum(1) > 0], dim=1)  # before this row
    stop = torch.where(ended, 0, row).amax(1) + 1  # the first row behind the terminal transition
    source = torch.minimum(row, stop[:, None]).unsqueeze(-1).expand_as(states)
    rows = states.new_zeros(n, horizon + 1, states.shape[2] + actions.shape[2] + 2)
    alive = ~ended[:, :-1]
    rows[..., : states.shape[2]] = states.gather(1, source)
    rows[:, :-1, states.shape[2] : -2] = torch.where(alive[..., None], actions[:, :-1], 0.0)
    rows[:, :-1, -2] = torch.where(alive, reward, 0.0)
    rows[:, :-1, -1] = (terminal | ~alive).to(rows.dtype)
    return rows
