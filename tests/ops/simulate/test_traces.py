"""Recorded load: what the format means, and what a wrong file is told."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from ops.errors import UserError
from ops.simulate.traces import read

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
ROWS = "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n2023-11-16 18:15:48.6805900,879,0\n"


def test_a_trace_is_read_in_order_plain_or_packed(tmp_path):
    (plain := tmp_path / "mine.csv").write_text(HEADER + ROWS)
    (packed := tmp_path / "mine.csv.gz").write_bytes(gzip.compress((HEADER + ROWS).encode()))
    load = read(plain)
    assert load == read(packed) and load.name == "mine"
    assert [a[:3] for a in load.arrivals] == [(0.0, 374, 44), (2.0, 879, 1), (pytest.approx(4.314579), 396, 109)]
    assert load.rate == pytest.approx(2 / 4.314579)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "first line"),
        ("time,in,out\n1,2,3\n", "first line"),
        (HEADER, "fewer than two"),
        (HEADER + "2023-11-16 18:15:46.6805900,374,44\n", "fewer than two"),
        (HEADER + "2023-11-16 18:15:46.6805900,374\n", "line 2"),
        (HEADER + ROWS + "yesterday,374,44\n", "line 5"),
        (HEADER + "2023-11-16 18:15:46,0,44\n", "not a request"),
        (HEADER + "2023-11-16 18:15:46,5,44\n2023-11-16 18:15:46,5,44\n", "same timestamp"),
        (HEADER + "\0\xff", "line 2"),
    ],
)
def test_a_wrong_file_is_told_what_is_wrong(tmp_path, content, told):
    (file := tmp_path / "trace.csv").write_text(content)
    with pytest.raises(UserError, match=told) as error:
        read(file)
    assert str(file) in str(error.value)


def test_what_cannot_be_read_is_told_too(tmp_path):
    (broken := tmp_path / "trace.csv.gz").write_bytes(gzip.compress(HEADER.encode() * 100)[:40])
    (binary := tmp_path / "trace.bin").write_bytes(bytes(range(128, 256)))
    for file, told in ((broken, "cannot be read"), (binary, "cannot be read"), (tmp_path / "none", "no file")):
        with pytest.raises(UserError, match=told):
            read(Path(file))
    with pytest.raises(UserError):
        read(tmp_path)
