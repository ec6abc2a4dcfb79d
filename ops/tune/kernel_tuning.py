"""The search for tiles on the GPU at hand, and the files that vLLM reads: `VLLM_TUNED_CONFIG_FOLDER`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ops.errors import UserError
from ops.tune.kernel_timing import Timed, Where
from ops.tune.kernels import BATCHES, Experts, Run, Tile, chosen, next_run

_RESERVE_S = 10.0  # a tile begun so near to the limit might pass it


class Timer(Protocol):
    """`KernelTimer`, as it is used here."""

    @property
    def where(self) -> Where: ...

    def time(self, batch: int, tile: Tile | None, calls: int) -> Timed: ...


class Runs:
    """The file of what was timed, which a run that was cut off goes on from. UserError: it is of another search."""

    def __init__(self, file: Path, search: Mapping[str, Any]) -> None:
        self._file = file
        self.runs: list[Run] = []
        self.own: dict[int, dict[str, int]] = {}  # by tokens: vLLM's own configuration
        rows = _rows(file)
        if not rows:
            self._add(dict(search))
        elif rows[0] != dict(search):
            raise UserError(f"{file} is of another search ({rows[0]}): name another folder by --out")
        for row in rows[1:]:
            self._take(row)

    def add(self, batch: int, tile: Tile | None, calls: int, timed: Timed) -> None:
        row = {"batch": batch, "tile": tile, "calls": calls, "us": timed.us, "own": timed.own, "reason": timed.reason}
        self._take(row)
        self._add(row)

    def _take(self, row: Mapping[str, Any]) -> None:
        tile = None if row["tile"] is None else Tile(*row["tile"])
        self.runs.append(Run(row["batch"], tile, row["calls"], row["us"]))
        if row["own"]:
            self.own[row["batch"]] = row["own"]

    def _add(self, row: Mapping[str, Any]) -> None:
        with self._file.open("a") as file:
            file.write(json.dumps(row) + "\n")


def _rows(file: Path) -> list[dict[str, Any]]:
    """A last line that was cut off is taken away."""
    if not file.is_file():
        return []
    data = file.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(file, len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def tune(
    experts: Experts,
    timer: Timer,
    out: Path,
    limit_s: float,
    report: Callable[[str], None],
    batches: Sequence[int] = BATCHES,
) -> dict[int, float]:
    """Times tiles until all is known or `limit_s` seconds are over, and writes vLLM's file into `out`. Returns, by
    tokens, how many times as fast as vLLM's own the chosen tile is; what is not known yet keeps vLLM's own.
    """
    ends, where = time.monotonic() + limit_s, timer.where
    out.mkdir(parents=True, exist_ok=True)
    search = experts._asdict() | {"gpu": where.gpu, "triton": where.triton}
    kept = Runs(out / f"{where.file.removesuffix('.json')}.runs.jsonl", search)
    for batch in batches:  # first, so that a file can be written at any time
        if batch not in kept.own:
            kept.add(batch, None, 0, timer.time(batch, None, 0))
    known = chosen(kept.runs, batches)
    while (wanted := next_run(experts, kept.runs, where.shared_bytes, batches)) is not None:
        if time.monotonic() + _RESERVE_S > ends:
            report("the limit is over: the same command goes on from here")
            break
        kept.add(*wanted, timer.time(*wanted))
        if len(now := chosen(kept.runs, batches)) > len(known):
            (batch,) = now.keys() - known.keys()
            tile, gain = now[batch]
            report(f"{batch} tokens: {gain:.2f} times as fast as vLLM's own" + (f", {tile}" if tile else ""))
            known = now
    written = configurations(known, kept.own, where.triton)
    (out / where.file).write_text(json.dumps(written, indent=4) + "\n")
    return {batch: gain for batch, (_, gain) in known.items()}


def configurations(
    known: Mapping[int, tuple[Tile | None, float]], own: Mapping[int, Mapping[str, int]], triton: str
) -> dict[str, Any]:
    """vLLM's file. It takes the entry nearest to a step's tokens: so each has one, be it vLLM's own."""
    found: dict[str, Any] = {"triton_version": triton}
    for batch in sorted(own):
        tile = known.get(batch, (None, 1.0))[0]
        found[str(batch)] = dict(own[batch]) if tile is None else tile.as_vllm()
    return found
