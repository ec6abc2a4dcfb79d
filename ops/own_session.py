"""A session of a bench's, a soak's or a test's own: in the background, with a free port and its own state directory."""

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

_COMMAND_LIMIT_S = 120
# The keeper: starts the session, says how that went, and ends it when its input ends, which is at the latest when the
# process that wanted the session is gone, in whatever way.
_KEEPER = f"""
"$0" -m ops.cli up --detach "$@" </dev/null >"${STATE_VARIABLE}/up.log" 2>&1
code=$?; trap "" PIPE; echo $code
read -r _
"$0" -m ops.cli down >/dev/null 2>&1
rm -rf "${STATE_VARIABLE}"
"""


class NotStarted(UserError):
    """The session did not come up; the message holds its last words."""


class OwnSession(NamedTuple):
    """A running `moray up --detach`."""

    url: str
    port: int
    id: str
    leader: int  # process id
    env: Mapping[str, str]  # of commands that are to find it

    def moray(self, *arguments: str, limit_s: float = _COMMAND_LIMIT_S) -> subprocess.CompletedProcess[str]:
        """A command about this session; nobody is there to answer what it asks."""
        command = [sys.executable, "-m", "ops.cli", *arguments]
        return subprocess.run(
            command,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )


@contextmanager
def own_session(settings: Mapping[str, str]) -> Iterator[OwnSession]:
    """A session with these settings, which is down when the context is left or this process dies. Raises NotStarted."""
    port = free_port()
    chosen = {"gateway.port": str(port), **settings}
    sets = [part for key, value in chosen.items() for part in ("--set", f"{key}={value}")]
    state = Path(tempfile.mkdtemp(prefix="moray-own-"))
    env = os.environ | {STATE_VARIABLE: str(state)}
    keeper = subprocess.Popen(
        ["/bin/sh", "-c", _KEEPER, sys.executable, *sets],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a Ctrl-C is for us
    )
    assert keeper.stdin is not None and keeper.stdout is not None
    try:
        if (code := keeper.stdout.readline().strip()) != "0":
            said = (state / "up.log").read_text(errors="replace")
            raise NotStarted(f"the session did not start (exit code {code}):\n{said[-3000:]}")
        [record] = [json.loads(file.read_text()) for file in state.glob("*.session.json")]
        yield OwnSession(f"http://127.0.0.1:{port}", port, record["id"], record["pid"], env)
    finally:
        keeper.stdin.close()
        keeper.wait()
        keeper.stdout.close()


def free_port() -> int:
    """A TCP port of this machine's loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
