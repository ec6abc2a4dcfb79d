"""`moray status`: what a session reports of itself, as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import httpx
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ops.errors import UserError
from ops.gateway_calls import authorization

_GOOD_STATES = frozenset({"ready", "running", "serving"})
_MIB = 2**20


class StatusError(UserError):
    """The session does not tell its state."""


def fetch(url: str, api_key: str | None = None, path: str = "/moray/status") -> dict[str, Any]:
    """The session's own report. Raises StatusError."""
    try:
        response = httpx.get(f"{url}{path}", headers=authorization(api_key), timeout=5.0, trust_env=False)
        response.raise_for_status()
        report = response.json()
    except httpx.ConnectError:
        raise StatusError(
            f"nothing answers at {url}: its gateways are starting, or gone (`moray down` tidies up)"
        ) from None
    except httpx.TimeoutException:
        raise StatusError(f"{url} did not answer in 5 s: its gateways hang or are swamped") from None
    except httpx.HTTPStatusError as error:
        refused = error.response.status_code == 401
        hint = ": this session asks for an API key, give one with --api-key or MORAY_API_KEY" if refused else ""
        raise StatusError(f"{url}{path} answered {error.response.status_code}{hint}") from None
    except (httpx.HTTPError, ValueError) as error:
        raise StatusError(f"{url}{path} cannot be read: {error}") from None
    if not isinstance(report, dict):
        raise StatusError(f"{url}{path} answered with no status")
    return report


def render(report: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Tables of the report's parts; a part that is missing is left out."""
    if model := report.get("model"):
        yield _pairs("model", model)
    if replicas := report.get("replicas"):
        yield _replicas(replicas)
        if any(replica.get("shards") for replica in replicas):
            yield _shards(replicas)
    if gateways := report.get("gateways"):
        yield _rows("gateways", gateways)
    if router := report.get("router"):
        yield _pairs("router", router)
    if scaling := report.get("autoscaling"):
        yield _pairs("autoscaling", {key: "?" if value is None else value for key, value in scaling.items()})
    if tenants := [{**t, "name": t["name"] or "(no keys)"} for t in report.get("tenants") or ()]:
        yield _rows("tenants", tenants)


def ranges(ids: Sequence[int]) -> str:
    """[0, 1, 2, 3, 6] -> "0-3 6"."""
    spans: list[list[int]] = []
    for i in sorted(set(ids)):
        if spans and i == spans[-1][1] + 1:
            spans[-1][1] = i
        else:
            spans.append([i, i])
    return " ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def experts_by_layer(layers: Sequence[Sequence[int]]) -> str:
    """Which experts a shard holds: one list if all layers agree, else a line for each run of like layers."""
    runs: list[tuple[int, int, str]] = []
    for layer, ids in enumerate(layers):
        held = ranges(ids) or "none"
        if runs and runs[-1][2] == held:
            runs[-1] = (runs[-1][0], layer, held)
        else:
            runs.append((layer, layer, held))
    if len(runs) <= 1:
        return "".join(held for _, _, held in runs)
    return "\n".join(f"{f'layer {a}' if a == b else f'layers {a}-{b}'}: {held}" for a, b, held in runs)


def _replicas(replicas: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="replicas", title_justify="left")
    for column in ("id", "state", "epoch", "running", "waiting", "KV used"):
        table.add_column(column, justify="left" if column in ("id", "state") else "right")
    for replica in replicas:
        state = str(replica.get("state", "?"))
        used = replica.get("kv_used_fraction")
        table.add_row(
            _cell(replica.get("id", "?")),
            Text(state, style="green" if state.lower() in _GOOD_STATES else "yellow"),
            *(_cell(replica.get(key, "?")) for key in ("epoch", "running", "waiting")),
            "?" if used is None else f"{used:.0%}",
        )
    return table


def _shards(replicas: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="which experts live where", title_justify="left")
    for column in ("replica", "shard", "process", "device", "experts", "of bytes"):
        table.add_column(column, justify="right" if column in ("shard", "process", "of bytes") else "left")
    for replica in replicas:
        for shard in replica.get("shards") or ():
            size = shard.get("expert_bytes")
            table.add_row(
                _cell(replica.get("id", "?")),
                *(_cell(shard.get(key, "?")) for key in ("rank", "pid", "device")),
                experts_by_layer(shard.get("experts_by_layer") or ()),
                "?" if size is None else f"{size / _MIB:,.1f} MiB",
            )
    return table


def _rows(title: str, rows: Sequence[Any]) -> Table:
    table = Table(title=title, title_justify="left")
    dicts = [row if isinstance(row, dict) else {"gateway": row} for row in rows]
    columns = list(dict.fromkeys(key for row in dicts for key in row))
    for column in columns:
        table.add_column(column)
    for row in dicts:
        table.add_row(*(_cell(row.get(column, "")) for column in columns))
    return table


def _pairs(title: str, values: Mapping[str, Any]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    for key, value in values.items():
        table.add_row(Text(key), _cell(value))
    return table


def _cell(value: Any) -> Text:
    # Text, not str: an answer from outside must not be read as markup.
    if isinstance(value, float):
        return Text(f"{value:,.4g}")
    if isinstance(value, dict):
        return Text(", ".join(f"{k} {v}" for k, v in value.items()))
    return Text(", ".join(map(str, value)) if isinstance(value, list) else str(value))
