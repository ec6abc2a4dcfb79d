"""The body of what an operator asks of a gateway's own routes."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from fastapi import HTTPException, Request

T = TypeVar("T")


async def order_of(request: Request, kind: type[T]) -> T:
    """JSON only, which no page of another origin can send unasked. HTTPException 415 or 400: it is none of `kind`."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "Send application/json.")
    try:
        return msgspec.json.decode(await request.body(), type=kind)
    except msgspec.MsgspecError as error:
        raise HTTPException(400, f"The body is not understood: {error}") from error
