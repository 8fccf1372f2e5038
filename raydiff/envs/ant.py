"""D4RL's Ant: Gymnasium's, with the 84 contact forces of gym's Ant-v2 that were never anything but zero.

MuJoCo 2 stopped computing them unasked (openai/gym issue 1541), so the last 84 of the 111 observations in D4RL's
``ant-*-v2`` files are zero (D4RL issue 143), and so was the contact cost. Gymnasium computes them again where
``use_contact_forces`` is set: observations that no policy trained on these files has met.
"""

from __future__ import annotations

import gymnasium
import mujoco
import numpy as np
from gymnasium.envs.mujoco.ant_v4 import AntEnv
from gymnasium.spaces import Box
from gymnasium.wrappers import TimeLimit

from raydiff.envs.quiet import quiet_mujoco
from raydiff.errors import UserError

IDS = ("ant-v2",)
STEP_LIMIT = 1000
_CONTACT_FORCES = 84

DIFFERENCES = (
    "Gymnasium's Ant-v4 on the installed MuJoCo, where D4RL used gym's Ant-v2 on mujoco-py: the same model, rewards "
    "and limits. The 84 contact forces are zero, as they are in D4RL's ant-*-v2 files.",
    "MuJoCo of that time approximated the mass of capsules: by its rule the ant weighed 0.879 kg, now 0.911 kg.",
)


class Ant(AntEnv):
    """Observations ``[111]``: 13 positions without x and y, 14 velocities, 84 zeros. Actions ``[8]`` in ±1."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(use_contact_forces=False, render_mode=render_mode)
        self.observation_space = Box(-np.inf, np.inf, (27 + _CONTACT_FORCES,), np.float64)

    def reset_model(self) -> np.ndarray:
        super().reset_model()
        # MuJoCo 2 wrote the unit quaternion back to qpos, hence into D4RL's observations; MuJoCo 3 does not.
        mujoco.mj_normalizeQuat(self.model, self.data.qpos)
        return self._get_obs()

    def _get_obs(self) -> np.ndarray:
        return np.concatenate([super()._get_obs(), np.zeros(_CONTACT_FORCES)])


def make(name: str, render_mode: str | None = None) -> gymnasium.Env:
    """D4RL's ``ant-v2`` with its time limit. Raises ``UserError`` for any other id."""
    with quiet_mujoco():
        return TimeLimit(Ant(render_mode), step_limit(name))


def step_limit(name: str) -> int:
    """Steps after which D4RL cuts an episode."""
    if name not in IDS:
        raise UserError(f"{name!r} is not an ant. Use {', '.join(IDS)}.")
    return STEP_LIMIT
