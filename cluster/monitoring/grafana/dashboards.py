"""Grafana dashboards as JSON, built from panels. Only development needs this file, not a run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    GraphGradientMode,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    VariableRefresh,
)

from cluster.monitoring.grafana.panels import Board, Panel

_SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
_FOLDER = Path(__file__).parents[2] / "deploy" / "grafana"
_WIDTH, _HEIGHT, _NUMBER_HEIGHT = 24, 8, 4
# Variables of a dashboard, and the series that gives their values.
_VARIABLES = (("run", "streamssl_steps_wanted"), ("pool", "streamssl_pool_ready"))


def build(board: Board) -> str:
    """Return a dashboard in the format that Grafana imports."""
    made = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .tags(["streamssl"])
        .refresh("10s")
        .time("now-1h", "now")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").type("prometheus"))
    )
    for label, series in _VARIABLES:
        if any(f"${label}" in query.expr for panel in _panels(board) for query in panel.queries):
            made = made.with_variable(_variable(label, series))
    number = 0
    for title, panels in board.rows:
        made = made.with_row(dashboard.Row(title))
        width = max(4, _WIDTH // min(len(panels), 6 if panels[0].shows == "number" else 2))
        for panel in panels:
            number += 1
            made = made.with_panel(_panel(panel, width).id(number))
    return json.dumps(made.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def _panels(board: Board) -> list[Panel]:
    return [panel for _, panels in board.rows for panel in panels]


def _variable(label: str, series: str) -> Any:
    return (
        dashboard.QueryVariable(label)
        .label(label)
        .datasource(_SOURCE)
        .query(f"label_values({series}, {label})")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )


def _panel(panel: Panel, width: int) -> Any:
    is_number = panel.shows == "number"
    made: Any = (stat if is_number else timeseries).Panel()
    made = (
        made.title(panel.title)
        .description(panel.question)
        .datasource(_SOURCE)
        .unit(panel.unit)
        .span(width)
        .height(_NUMBER_HEIGHT if is_number else _HEIGHT)
    )
    made = _number(made) if is_number else _lines(made, panel)
    for number, query in enumerate(panel.queries):
        made = made.with_target(
            prometheus.Dataquery()
            .expr(query.expr)
            .legend_format(query.legend)
            .ref_id(chr(ord("A") + number))
        )
    return made


def _number(made: Any) -> Any:
    newest = common.ReduceDataOptions().calcs(["lastNotNull"])
    return made.color_mode(BigValueColorMode.VALUE).reduce_options(newest)


def _lines(made: Any, panel: Panel) -> Any:
    made = (
        made.line_width(1)
        .show_points(VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    )
    if panel.shows != "parts":
        return made
    return (
        made.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
        .fill_opacity(40)
        .gradient_mode(GraphGradientMode.NONE)
    )


def write_dashboards(boards: Sequence[Board]) -> None:
    """Write the dashboards to `cluster/deploy/grafana/`."""
    for board in boards:
        (_FOLDER / f"{board.uid}.json").write_text(build(board))
