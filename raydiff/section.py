"""What every section of the configuration is: frozen and validated, unknown keys refused."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Hidden = tuple[Annotated[int, Field(ge=1)], ...]
"""Widths of hidden layers."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)
