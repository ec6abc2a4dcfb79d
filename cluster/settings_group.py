"""What every group of settings has in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Group(BaseModel):
    # Settings travel between processes and are compared; nobody changes them on the way. An unknown key is a mistake.
    # `model` is our group's name, so pydantic's reservation of the `model_` prefix is lifted.
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
