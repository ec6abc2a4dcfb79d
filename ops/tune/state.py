"""The file that a search goes on from: what is searched, then each trial as it ends, one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ops.errors import UserError
from ops.tune.search import Option, Trial


class State:
    """Of one search. UserError: the file is another search's, or no such file at all."""

    def __init__(self, file: Path, search: Mapping[str, Any]) -> None:
        """`search`: what has to be the same for trials to compare, JSON values."""
        self._file = file
        self.trials: list[Trial] = []
        self.checks: list[Trial] = []  # of engines loaded with exactly what the search chose
        self.options: tuple[Option, ...] | None = None  # known once an engine with the defaults was loaded
        self.first_rate = 0.0
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = _whole_lines(file)
        if not rows:
            self._add(search=dict(search))
        elif "search" not in rows[0]:
            raise UserError(f"{file} is no state of a search: name another file by --state")
        else:
            self._compare(rows[0]["search"], json.loads(json.dumps(dict(search))))
        for row in rows[1:]:
            if "options" in row:
                self.options = tuple(
                    Option(one["name"], tuple(map(_hashable, one["values"])), one["live"]) for one in row["options"]
                )
                self.first_rate = row["first_rate"]
            elif "setting" in row:
                setting = {name: _hashable(value) for name, value in row["setting"].items()}
                trial = Trial(setting, row["rate"], row["attained"])
                (self.checks if row.get("check") else self.trials).append(trial)

    def _compare(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        other = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        if other:
            told = "; ".join(f"{name} was {old.get(name)}, now {new.get(name)}" for name in other)
            raise UserError(f"{self._file} is the state of another search: {told}. Name another file by --state")

    def begin(self, options: Sequence[Option], first_rate: float) -> None:
        """What is chosen among, once that is known."""
        self.options, self.first_rate = tuple(options), first_rate
        told = [{"name": one.name, "values": one.values, "live": one.live} for one in options]
        self._add(options=told, first_rate=first_rate)

    def add(self, trial: Trial, check: bool = False, **seen: Any) -> None:
        """`seen`: what else is to be kept of it."""
        (self.checks if check else self.trials).append(trial)
        what = {"setting": dict(trial.setting), "rate": trial.rate, "attained": trial.attained}
        self._add(**(what | ({"check": True} if check else {}) | seen))

    def _add(self, **what: Any) -> None:
        with self._file.open("a") as file:
            file.write(json.dumps(what) + "\n")


def _whole_lines(file: Path) -> list[dict[str, Any]]:
    """What was written to its end. A last line that was cut off is taken away, so that the next does not join it."""
    if not file.is_file():
        return []
    data = file.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        with file.open("r+b") as cut:
            cut.truncate(end)
    try:
        rows = [json.loads(line) for line in data[:end].splitlines()]
    except ValueError:
        raise UserError(f"{file} is no state of a search: name another file by --state") from None
    return [row if isinstance(row, dict) else {} for row in rows]


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
