"""Reads recorded load: the format of the Azure LLM inference traces (TIMESTAMP,ContextTokens,GeneratedTokens).

github.com/Azure/AzurePublicDataset, AzureLLMInferenceDataset2023 (CC-BY); plain or gzip-compressed.
"""

import csv
import gzip
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from ops.errors import UserError
from ops.simulate.workloads import Arrival, Workload

COLUMNS = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]


def read(path: Path) -> Workload:
    """The trace as a workload, at its own rate. UserError: what is wrong with the file, and where."""
    arrivals = []
    first: datetime | None = None
    for line, row in _rows(path):
        try:
            # Seven digits of a second are more than datetime takes.
            at = datetime.fromisoformat(row[0][:26])
            prompt, output = int(row[1]), int(row[2])
        except (ValueError, IndexError):
            raise UserError(
                f"{path}, line {line}: expected a timestamp and two numbers, found {','.join(row)!r}"
            ) from None
        if prompt < 1 or output < 0:
            raise UserError(f"{path}, line {line}: {prompt} prompt and {output} output tokens are not a request")
        first = first or at
        arrivals.append(Arrival((at - first).total_seconds(), prompt, max(output, 1)))
    if len(arrivals) < 2:
        raise UserError(f"{path} has fewer than two requests: there is no rate to it")
    arrivals.sort(key=lambda a: a.at_s)
    begin = arrivals[0].at_s
    arrivals = [a._replace(at_s=a.at_s - begin) for a in arrivals]
    if arrivals[-1].at_s <= 0.0:
        raise UserError(f"{path}: all requests have the same timestamp: there is no rate to them")
    name = path.name.removesuffix(".gz").removesuffix(".csv")
    # The last request ends a gap, not the trace: as much again as a mean gap follows it.
    return Workload(name, tuple(arrivals), arrivals[-1].at_s * len(arrivals) / (len(arrivals) - 1))


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of all lines behind the header."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rt", encoding="utf-8") if packed else path.open(encoding="utf-8") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            if [name.strip() for name in header] != COLUMNS:
                raise UserError(
                    f"{path} is no such trace: its first line has to be {','.join(COLUMNS)}, it is {','.join(header)!r}"
                )
            for row in reader:
                if row:
                    yield reader.line_num, row
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
