"""What MuJoCo and its companions write to stderr of their own accord, kept off it where it is expected."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from importlib import import_module

import mujoco

from raydiff.errors import UserError


@contextmanager
def quiet_mujoco() -> Iterator[None]:
    """Keep MuJoCo's own warnings off stderr and out of the ``MUJOCO_LOG.TXT`` that it would write beside the user.

    For places where they are expected: the models of Gymnasium use a deprecated attribute, and replayed synthetic
    states may be impossible ones (the counters of ``MjData.warning`` still tell).
    """
    previous = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(previous)


def load_gymnasium_robotics() -> None:
    """Import gymnasium-robotics without the notice on rewards that it prints (raydiff computes D4RL's own).

    Raises ``UserError`` where it is not installed.
    """
    try:
        with redirect_stderr(io.StringIO()):
            import_module("gymnasium_robotics")
    except ModuleNotFoundError as error:
        raise UserError(
            f"This environment needs gymnasium-robotics, which cannot be imported ({error}). Install it with "
            "pip install 'gymnasium-robotics>=1.3,<2'."
        ) from error
