"""Which version the application's user_config asks for. Pure.

A change of the Gateway deployment's `user_config` is what `helm upgrade` and KubeRay's in-place update of a Serve
application come down to; it restarts nothing. Each gateway tells the controller with every report what it has been
told. A change counts when all gateways say the same: one that starts, or that Serve has not reconfigured yet, holds
what was wanted before, and its word must not undo what the others were told.

What wins: the assignment in Ray's store over the settings' `model.version`, which counts on a new Ray cluster only; and
a user_config that has changed over both. One that is as it was before says nothing, however often the application is
deployed: what was rolled out since by `moray rollout` stays.
"""

from __future__ import annotations

from typing import Any

import msgspec

FRESH_S = 4.0  # a gateway reports once a second
AGREED_S = 2.0  # for so long all have to say the same


class Wish(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`user_config`, as deployments of Moray have it."""

    version: str  # of the store, that is to be served
    rollout: dict[str, Any] = {}  # how it is to get there: fields of a RolloutSpec; those left out are the settings'


def parse(text: str) -> Wish:
    """Of a user_config as JSON. ValueError, a sentence: it is none of ours."""
    try:
        wish = msgspec.json.decode(text, type=Wish)
    except msgspec.MsgspecError as error:
        raise ValueError(f'user_config is not understood ({error}): write {{"version": "v2"}}') from None
    if "version" in wish.rollout:
        raise ValueError("user_config: the version stands beside `rollout`, not in it")
    return wish


class Wishes:
    """What the gateways say."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[float, str]] = {}  # by gateway: when, what
        self._agreed: tuple[float, str] | None = None  # since when, on what

    def told(self, now_s: float, gateway: str, text: str) -> None:
        self._told[gateway] = (now_s, text)

    def agreed(self, now_s: float) -> str | None:
        """The user_config, as JSON, that all gateways have been told of; None: they differ as yet, or have none."""
        self._told = {name: told for name, told in self._told.items() if now_s - told[0] <= FRESH_S}
        said = {text for _, text in self._told.values()}
        if len(said) != 1:
            self._agreed = None
            return None
        [text] = said
        if self._agreed is None or self._agreed[1] != text:
            self._agreed = (now_s, text)
        return text if text and now_s - self._agreed[0] >= AGREED_S else None
