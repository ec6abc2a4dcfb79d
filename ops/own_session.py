"""A session of a bench's or soak's own: in the background, on a free port, in a state directory of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ops.errors import UserError
from ops.session import STATE_VARIABLE

_UP_LIMIT_S = 300
_DOWN_LIMIT_S = 120


class NotStarted(UserError):
    """The session did not come up; the message holds its last words."""


class OwnSession(NamedTuple):
    """A running `moray up --detach`."""

    url: str
    id: str
    env: Mapping[str, str]  # of commands that are to find it

    def down(self) -> None:
        """Ends it; says so of one that has ended, too."""
        _moray(self.env, "down", limit_s=_DOWN_LIMIT_S)


@contextmanager
def own_session(settings: Mapping[str, str]) -> Iterator[OwnSession]:
    """A session with these settings, which is down when the context is left. Raises NotStarted."""
    port = free_port()
    chosen = {"gateway.port": str(port), **settings}
    sets = [part for key, value in chosen.items() for part in ("--set", f"{key}={value}")]
    with tempfile.TemporaryDirectory(prefix="moray-own-") as state:
        env = os.environ | {STATE_VARIABLE: state}
        try:
            up = _moray(env, "up", "--detach", *sets, limit_s=_UP_LIMIT_S)
            if up.returncode != 0:
                raise NotStarted(f"the session did not start:\n{up.stdout[-1000:]}{up.stderr[-2000:]}")
            [record] = [json.loads(file.read_text()) for file in Path(state).glob("*.session.json")]
            yield OwnSession(f"http://127.0.0.1:{port}", record["id"], env)
        finally:
            _moray(env, "down", limit_s=_DOWN_LIMIT_S)  # says that nothing runs, if nothing does


def free_port() -> int:
    """A TCP port of this machine's loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _moray(env: Mapping[str, str], *arguments: str, limit_s: float) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ops.cli", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=limit_s, check=False)
