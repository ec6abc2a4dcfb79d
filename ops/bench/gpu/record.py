"""What a run on a GPU writes down, as it comes: one JSON object a line, so that a run cut off has lost nothing."""

from __future__ import annotations

import json
import tarfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ops.bench.direct_engine import BenchFailed

_LOG_LIMIT = 14 << 20  # bytes of packed logs: more of the oldest ones are left out


@dataclass(frozen=True)
class Step:
    """A part of a run that stands for itself."""

    name: str
    needs_s: float  # it is not begun when less time is left
    run: Callable[[Notes], None]


class Notes:
    """Writes `results.jsonl` into a folder; `logs` is a folder for logs, packed beside it after each step."""

    def __init__(self, out: Path, logs: Path, limit_s: float, report: Callable[[str], None]) -> None:
        """`limit_s`: seconds from now that the whole run has."""
        out.mkdir(parents=True, exist_ok=True)
        logs.mkdir(parents=True, exist_ok=True)
        self.out, self.logs = out, logs
        self._file, self._packed = out / "results.jsonl", out / "logs.tar.gz"
        self._began, self._ends = time.monotonic(), time.monotonic() + limit_s
        self._report = report
        self._step = ""

    @property
    def left_s(self) -> float:
        return self._ends - time.monotonic()

    def add(self, **what: Any) -> None:
        line = {"step": self._step, "at_s": round(time.monotonic() - self._began, 1)} | what
        with self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._report(json.dumps(line))

    def on_machine(self, **machine: Any) -> None:
        """Begins a pass: what is measured in one is compared. A run that goes on with the last pass begins none."""
        last, told = self._pass()[:1], json.loads(json.dumps(machine))
        if not last or any(last[0].get(name) != value for name, value in told.items() if name != "phase"):
            self.add(what="machine", **machine)

    def log(self, name: str) -> Path:
        """A file for what a process says."""
        return self.logs / f"{self._step}-{name}.log".replace("/", "-")

    def done(self) -> set[str]:
        """Steps that ended well, in this run or one that it goes on with."""
        return {row["step"] for row in self._pass() if row["what"] == "step" and row["ended"] == "well"}

    def _pass(self) -> list[dict[str, Any]]:
        """Rows of the last one: what another machine has measured is no part of it."""
        rows = list(lines(self._file))
        begins = [number for number, row in enumerate(rows) if row["what"] == "machine"]
        return rows[begins[-1] :] if begins else rows

    def run(self, steps: list[Step]) -> None:
        """All that are not done, in order, as time allows. What breaks one is written down, and ends no other."""
        done = self.done()
        for step in steps:
            if step.name in done:
                continue
            self._step = step.name
            if self.left_s < step.needs_s:
                self.add(what="step", ended="not begun", left_s=round(self.left_s), needs_s=step.needs_s)
                continue
            began = time.monotonic()
            try:
                step.run(self)
            except Exception as error:
                text = f"{type(error).__name__}: {error}"
                self.add(what="step", ended="broken", error=text[-3000:], trace=traceback.format_exc()[-3000:])
            else:
                self.add(what="step", ended="well", took_s=round(time.monotonic() - began, 1))
            self.pack_logs()

    def measure(self, measures: Iterable[Callable[..., None]], *arguments: Any, ends: float) -> None:
        """Each of them that this step has not measured yet, none begun after `ends` (monotonic). One that breaks is
        written down and ends no other; BenchFailed in the end if any is missing.
        """
        own = [row for row in self._pass() if row["step"] == self._step and row["what"] == "measured"]
        done, missing = {row["measure"] for row in own}, []
        for measure in measures:
            name = measure.__name__
            if name in done:
                continue
            if time.monotonic() >= ends:
                missing.append(f"{name} (no time)")
                continue
            try:
                measure(*arguments)
            except Exception as error:
                missing.append(name)
                self.add(what="broken", measure=name, error=f"{type(error).__name__}: {error}"[-2000:])
            else:
                self.add(what="measured", measure=name)
        if missing:
            raise BenchFailed(f"not measured: {', '.join(missing)}. A run over the same folder goes on with them")

    def pack_logs(self) -> None:
        """Newest first, until they are too many."""
        files = sorted((f for f in self.logs.rglob("*") if f.is_file()), key=lambda f: -f.stat().st_mtime)
        with tarfile.open(self._packed, "w:gz") as packed:
            for file in files:
                if self._packed.stat().st_size > _LOG_LIMIT:
                    return
                packed.add(file, file.relative_to(self.logs))


def lines(file: Path) -> Iterator[dict[str, Any]]:
    """Of a `results.jsonl`; a last line that was cut off is none."""
    if not file.is_file():
        return
    for line in file.read_text().splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return
