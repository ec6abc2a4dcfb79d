"""What a person sees while a session starts or ends: stages with their seconds, in place on a terminal, else lines."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from rich.console import Console, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text


class Stages:
    """Takes `report(stage, detail)`: a new stage ends the one before; the same stage again renews its detail."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._begin = time.monotonic()
        self._stages: list[tuple[str, str, float]] = []  # name, detail, begin
        self._end: float | None = None
        self._failed = False
        self._lock = threading.Lock()  # stages are reported from whichever thread reaches them
        self._spinner = Spinner("dots")
        self._live = (
            Live(console=console, get_renderable=self._render, refresh_per_second=8) if console.is_terminal else None
        )

    def __enter__(self) -> Stages:
        if self._live:
            self._live.start()
        return self

    def report(self, stage: str, detail: str = "") -> None:
        now = time.monotonic()
        with self._lock:
            if self._stages and self._stages[-1][0] == stage:
                self._stages[-1] = (stage, detail, self._stages[-1][2])
            else:
                self._stages.append((stage, detail, now))
        if not self._live:
            self._print(now, f"{stage}: {detail}" if detail else stage)

    def _print(self, now: float, line: str) -> None:
        self._console.print(f"[{now - self._begin:6.1f} s] {line}", markup=False, highlight=False, soft_wrap=True)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end, self._failed = time.monotonic(), kind is not None
        if self._live:
            self._live.stop()
        elif not self._failed:
            self._print(self._end, "done")

    def _render(self) -> RenderableType:
        now = self._end or time.monotonic()
        with self._lock:
            stages = list(self._stages)
        table = Table.grid(padding=(0, 1))
        for i, (name, detail, begin) in enumerate(stages):
            last = i == len(stages) - 1
            until = now if last else stages[i + 1][2]
            table.add_row(
                self._mark(last), name, Text(f"{until - begin:.1f} s", style="dim"), Text(detail, style="dim")
            )
        return table

    def _mark(self, last: bool) -> RenderableType:
        if last and self._end is None:
            return self._spinner
        return Text("✗", style="red") if last and self._failed else Text("✓", style="green")
