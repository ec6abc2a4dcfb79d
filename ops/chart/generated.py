"""The files of the chart that a program makes, as they should be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ops.chart import commented, reference, schema

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "moray"
RULES = ROOT / "ops" / "alerts" / "moray.rules.yaml"
DASHBOARDS = ROOT / "ops" / "dashboards" / "generated"
COPIES = "files"  # Helm reads files inside the chart only; nothing else lies here


def generated(chart: Path) -> dict[str, str]:
    """Path in the chart -> text. BadValues: values.yaml cannot be used."""
    of_values = schema.schema(commented.read((chart / "values.yaml").read_text()))
    files = {"values.schema.json": of_values, "VALUES.md": reference.page(of_values)}
    files[f"{COPIES}/{RULES.name}"] = RULES.read_text()
    return files | {f"{COPIES}/dashboards/{page.name}": page.read_text() for page in sorted(DASHBOARDS.glob("*.json"))}


def stale(chart: Path, files: Mapping[str, str]) -> list[str]:
    """Paths in the chart that are missing, are not as in `files`, or are copies of what is no more."""
    there = {str(path.relative_to(chart)) for path in (chart / COPIES).rglob("*") if path.is_file()}
    differ = {
        path for path, text in files.items() if not (chart / path).is_file() or (chart / path).read_text() != text
    }
    return sorted(differ | there - files.keys())
