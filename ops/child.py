"""A process of ours that answers questions, a line each: started, asked with a limit, and gone in the end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

from ops.errors import UserError


class Died(UserError):
    """It ended, or gave no answer in time. One sentence."""


class Child:
    """`python -m MODULE ARGUMENTS… OUR_PID`. It is to call `experts.linux.die_with_parent` first."""

    def __init__(
        self,
        what: str,
        module: str,
        arguments: list[str],
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
    ) -> None:
        """`what` it is, for sentences: "the engine". `log`: where all that it says is kept; None: nowhere."""
        self._what = what
        self._log = tempfile.TemporaryFile() if log is None else log.open("a+b")  # noqa: SIM115 - until `end`
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=env,
            start_new_session=True,
        )

    def ask(self, question: bytes, limit_s: float) -> bytes:
        """Its next line, after this one of ours. Died as above; it is then of no use."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(question + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Died(self._last_words()) from None
        return self.hear(limit_s)

    def hear(self, limit_s: float) -> bytes:
        """Its next line."""
        assert self._process.stdout is not None
        late = threading.Event()

        def give_up() -> None:
            late.set()
            _signal_group(self._process)

        timer = threading.Timer(limit_s, give_up)
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if late.is_set():
            raise Died(f"{self._what} gave no answer within {limit_s:.0f} s")
        if not line:
            raise Died(self._last_words())
        return line

    def _last_words(self) -> str:
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").strip().splitlines()
        return f"{self._what}'s process ended: {said[-1] if said else 'it said nothing'}"

    def end(self) -> None:
        """It and what it has started; safe to call twice."""
        kill_group(self._process)
        self._log.close()


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a process that leads a session of its own, and all that it has started there."""
    _signal_group(process)
    process.communicate()


def _signal_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
