"""How Moray's dashboards look: a few kinds of panels over grafana-foundation-sdk's builders."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, statetimeline, timeseries
from grafana_foundation_sdk.models import common as looks
from grafana_foundation_sdk.models import dashboard as parts
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

TAG = "moray"
SOURCE = parts.DataSourceRef(type_val="prometheus", uid="${datasource}")


class _Queried(Protocol):
    """What all kinds of the SDK's panels share, and it has no type for."""

    def with_target(self, target: Any) -> Any: ...


_AnyPanel = TypeVar("_AnyPanel", bound=_Queried)


class Query(NamedTuple):
    expr: str
    legend: str = ""  # Grafana's template, such as {{stage}}


class Limits(NamedTuple):
    """From `warn` on yellow, from `bad` on red; where less is worse, `warn` is above `bad`."""

    warn: float
    bad: float


class Row(NamedTuple):
    title: str
    panels: Sequence[Any]


def graph(
    title: str, what: str, unit: str, *queries: Query, stacked: bool = False, most: float | None = None, wide: int = 8
) -> timeseries.Panel:
    """Lines over time. `unit` is Grafana's id of it, `most` the axis' upper end, `wide` of 24."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(what)
        .datasource(SOURCE)
        .unit(unit)
        .min(0)
        .span(wide)
        .height(8)
        .fill_opacity(30 if stacked else 8)
        .show_points(looks.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .display_mode(looks.LegendDisplayMode.LIST)
            .placement(looks.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(looks.TooltipDisplayMode.MULTI).sort(looks.SortOrder.DESCENDING))
    )
    if stacked:
        panel.stacking(common.StackingConfig().mode(looks.StackingMode.NORMAL))
    if most is not None:
        panel.max(most)
    return _with(panel, queries)


def figure(
    title: str, what: str, unit: str, query: str, limits: Limits | None = None, wide: int = 4, none: str = "-"
) -> stat.Panel:
    """One number, coloured by its limits. `none`: what stands there without data."""
    panel = (
        stat.Panel()
        .title(title)
        .description(what)
        .datasource(SOURCE)
        .unit(unit)
        .no_value(none)
        .span(wide)
        .height(4)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .graph_mode(looks.BigValueGraphMode.AREA)
    )
    if limits is not None:
        panel.thresholds(_steps(limits))
    return _with(panel, [Query(query)])


def heat(title: str, what: str, unit: str, query: Query) -> heatmap.Panel:
    """Rows of colours over time: each series of the query is a row."""
    panel = (
        heatmap.Panel()
        .title(title)
        .description(what)
        .datasource(SOURCE)
        .span(24)
        .height(10)
        .calculate(False)
        .rows_frame(heatmap.RowsHeatmapOptions().layout(looks.HeatmapCellLayout.AUTO))
        .color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64))
        .cell_values(heatmap.CellValues().unit(unit))
        .cell_gap(1)
        .show_legend()
    )
    return _with(panel, [query])


def states(title: str, what: str, *queries: Query) -> statetimeline.Panel:
    """A bar for each series: grey at 0, red at 1."""
    panel = (
        statetimeline.Panel()
        .title(title)
        .description(what)
        .datasource(SOURCE)
        .span(24)
        .height(9)
        .no_value("none")
        .show_value(looks.VisibilityMode.NEVER)
        .thresholds(
            dashboard.ThresholdsConfig()
            .mode(parts.ThresholdsMode.ABSOLUTE)
            .steps([parts.Threshold(None, "transparent"), parts.Threshold(1, "red")])
        )
    )
    return _with(panel, queries)


def page(slug: str, title: str, what: str, variables: Iterable[Any], rows: Iterable[Row]) -> parts.Dashboard:
    """A dashboard; with its links to all others, in which chosen time and variables stay."""
    made = (
        dashboard.Dashboard(f"Moray / {title}")
        .uid(f"moray-{slug}")
        .description(what)
        .tags([TAG])
        .timezone("browser")
        .time("now-1h", "now")
        .refresh("10s")
        .tooltip(parts.DashboardCursorSync.CROSSHAIR)
        .readonly()
        .link(
            dashboard.DashboardLink("Moray")
            .type(parts.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .as_dropdown(True)
            .keep_time(True)
            .include_vars(True)
        )
        .with_variable(dashboard.DatasourceVariable("datasource").label("data source").type("prometheus"))
    )
    for variable in variables:
        made.with_variable(variable)
    number = 0
    for row in rows:
        number += 1
        made.with_row(dashboard.Row(row.title).id(number))
        for panel in row.panels:
            number += 1
            made.with_panel(panel.id(number))
    return made.build()


def choice(name: str, query: str) -> dashboard.QueryVariable:
    """A variable of the values that a label has; all of them unless some are chosen."""
    return (
        dashboard.QueryVariable(name)
        .label(name)
        .datasource(SOURCE)
        .query(query)
        .refresh(parts.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(parts.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(parts.VariableOption(text="All", value="$__all", selected=True))
    )


def _steps(limits: Limits) -> dashboard.ThresholdsConfig:
    colours = ["green", "yellow", "red"] if limits.warn <= limits.bad else ["red", "yellow", "green"]
    values = [None, *sorted(limits)]
    steps = [parts.Threshold(value, colour) for value, colour in zip(values, colours, strict=True)]
    return dashboard.ThresholdsConfig().mode(parts.ThresholdsMode.ABSOLUTE).steps(steps)


def _with(panel: _AnyPanel, queries: Iterable[Query]) -> _AnyPanel:
    for number, query in enumerate(queries):
        target = prometheus.Dataquery().ref_id(chr(ord("A") + number)).datasource(SOURCE).expr(query.expr)
        target.legend_format(query.legend or "__auto").format(PromQueryFormat.TIME_SERIES).range()
        panel.with_target(target)
    return panel
