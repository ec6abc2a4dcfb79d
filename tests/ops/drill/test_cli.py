"""`moray drill`: what it refuses before anything is struck, and in which words."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from typer.testing import CliRunner

from ops.cli import app
from ops.drill.choosing import Fault
from ops.errors import UserError
from ops.victims import NotOurs


@pytest.mark.parametrize("fault", list(Fault))
def test_each_fault_explains_itself_with_examples(fault):
    done = CliRunner().invoke(app, ["drill", fault.value, "--help"])
    assert done.exit_code == 0 and f"moray drill {fault.value} --" in " ".join(done.output.split())


def refused(*arguments: str) -> str:
    """The one message of a drill that is not made."""
    done = CliRunner().invoke(app, ["drill", *arguments])
    assert done.exit_code == 1 and isinstance(done.exception, UserError) and not done.stdout
    return str(done.exception)


def test_a_refusal_is_one_line():
    command = [sys.executable, "-m", "ops.cli", "drill", "kill-router", "--yes"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr == "error: no session runs; `moray up` starts one\n"


def test_nobody_answers_at_the_url():
    assert "nothing answers at http://127.0.0.1:9" in refused("kill-router", "--url", "http://127.0.0.1:9")


def test_a_key_is_needed(gateway):
    gateway.key = "secret"
    assert "--api-key or MORAY_API_KEY" in refused("kill-replica", "--url", gateway.url)


def test_it_is_for_operators(gateway):
    gateway.drain_status = 403
    assert "a drill is for operators" in refused("kill-replica", "--url", gateway.url, "--yes")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--replica", "q"), "'q' is no replica; there are: abc, xyz"),
        ((), "is not on this host"),
    ],
)
def test_what_cannot_be_struck_is_said(gateway, arguments, said):
    assert said in refused("kill-replica", "--url", gateway.url, "--ray-address", "127.0.0.1:9", *arguments)


def test_the_only_replica_is_spared(gateway):
    gateway.status = gateway.status | {"replicas": gateway.status["replicas"][:1]}
    assert "--even-the-last" in refused("freeze-replica", "--url", gateway.url, "--yes")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines are found on this host; nobody gets as far as to strike them."""
    import ops.drill.drill

    monkeypatch.setattr(ops.drill.drill, "engine_here", lambda replica: replica)


@pytest.mark.usefixtures("here")
def test_without_a_terminal_it_strikes_nothing(gateway):
    done = CliRunner().invoke(app, ["drill", "slow-replica", "--url", gateway.url, "--for", "7", "--share", "0.8"])
    assert done.exit_code == 1 and "with --yes" in str(done.exception)
    said = " ".join(done.stderr.split())
    assert "the busiest of 2 ready replicas; now that is replica abc" in said
    assert "It gets 20% of its time for 7 s." in said


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("answer", "goes_on"), [("n\n", False), ("y\n", True)])
def test_a_person_is_asked(gateway, monkeypatch, answer, goes_on):
    import ops.drill.cli as cli
    import ops.drill.drill as drill

    class Terminal:
        isatty = staticmethod(lambda: True)

    async def carry_out(prepared: Any, tell: Any) -> dict[str, Any]:
        raise NotOurs("struck")

    monkeypatch.setattr(drill, "carry_out", carry_out)
    monkeypatch.setattr(cli, "sys", Terminal)
    monkeypatch.setattr(Terminal, "stdin", Terminal, raising=False)
    done = CliRunner().invoke(app, ["drill", "kill-replica", "--url", gateway.url], input=answer)
    assert ("struck" if goes_on else "nothing was struck") == str(done.exception)
