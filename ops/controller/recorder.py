"""Writes down what the detectors are told (`ops.anomaly.recording`), two files of bounded size at most."""

import logging
from logging.handlers import RotatingFileHandler
from pathlib import Path

from ops.anomaly.observations import Observation
from ops.anomaly.recording import line
from ops.controller.store import file_name

MOST_BYTES = 64 << 20  # of each; a busy cluster writes 100 bytes a request


class Recorder:
    """Blocking, by some microseconds a line: the file system's cache takes them."""

    def __init__(self, directory: Path, model: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._file = RotatingFileHandler(directory / f"{file_name(model)}.jsonl", maxBytes=MOST_BYTES, backupCount=1)

    def told(self, at_s: float, seen: Observation | None) -> None:
        """`seen` None: time was looked at."""
        text = line(at_s, seen).decode()
        self._file.emit(logging.LogRecord("", logging.INFO, "", 0, text, None, None))
