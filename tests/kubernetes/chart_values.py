"""Values that the chart is installed with here."""

from __future__ import annotations

from typing import Any

from cases import CASES, KEYS, MONITORING, OPEN, STORE

# All that the chart is rendered with, but for kinds that the tests' API server has not: it came before the Gateway API,
# and the ScrapeConfig's schema is not among those that we have.
INSTALLABLE = {name: values for name, values in CASES.items() if name != "gateway-api"} | {
    "monitored": KEYS | {"monitoring": MONITORING | {"scrapeConfig": {"enabled": False}}}
}


def of_version(version: str) -> dict[str, Any]:
    """A model of a store, in this version."""
    return OPEN | {"model": STORE | {"version": version}}
