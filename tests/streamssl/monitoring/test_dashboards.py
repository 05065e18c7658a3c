"""Dashboards equal their code, parse as PromQL, and name metrics that exist."""

import json
import re

import promql_parser
import pytest

from cluster.monitoring.grafana.dashboards import build
from streamssl.monitoring.catalogue import METRICS
from streamssl.monitoring.learning_panels import BOARDS
from tests.cluster.deployed import ROOT
from tests.streamssl.monitoring.test_rules import RECORDS

FOLDER = ROOT / "cluster" / "deploy" / "grafana"
QUERIES = [
    (f"{board.uid}: {panel.title}", query.expr)
    for board in BOARDS
    for _, panels in board.rows
    for panel in panels
    for query in panel.queries
]


def filled(expr: str) -> str:
    """Return an expression with its variables filled in."""
    for name, value in (("$__rate_interval", "1m"), ("$run", ".*"), ("$pool", ".*")):
        expr = expr.replace(name, value)
    assert "$" not in expr
    return expr


def selected(node) -> set[str]:
    """Return the names of all series that a parsed expression reads."""
    found = {node.name} if getattr(node, "name", None) and hasattr(node, "matchers") else set()
    for part in ("expr", "lhs", "rhs", "vector_selector", "vs", "param"):
        if (child := getattr(node, part, None)) is not None and not isinstance(child, str):
            found |= selected(child)
    for child in getattr(node, "args", None) or ():
        found |= selected(child)
    return found


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_files_equal_their_code(board):
    """An edit by hand would be lost with the next generation."""
    assert (FOLDER / f"{board.uid}.json").read_text() == build(board), (
        "run: python -m streamssl.monitoring.write_dashboards"
    )


def test_every_expression_parses_and_reads_served_series():
    """A panel with a misspelt name looks like a run in which nothing happens."""
    served = {name for metric in METRICS for name in metric.exposed_names} | RECORDS
    for panel, expr in QUERIES:
        named = set(re.findall(r"\bstreamssl[_:][a-z_0-9:]+", filled(expr)))
        assert named and named == selected(promql_parser.parse(filled(expr))), panel
        assert named <= served, panel


def test_panels_are_modern_titled_and_ask_a_question():
    """Grafana has removed `graph` panels; a panel without a question answers none."""
    assert {path.stem for path in FOLDER.glob("*.json")} == {board.uid for board in BOARDS}
    for board in BOARDS:
        made = json.loads((FOLDER / f"{board.uid}.json").read_text())
        panels = [panel for panel in made["panels"] if panel["type"] != "row"]
        assert {panel["type"] for panel in panels} <= {"timeseries", "stat"}
        assert len({panel["id"] for panel in panels}) == len(panels) > 4
        titles = [panel["title"] for panel in panels]
        assert len(set(titles)) == len(titles) and all(panel["description"] for panel in panels)
        names = [variable["name"] for variable in made["templating"]["list"]]
        assert names[:2] == ["datasource", "run"]
    assert "pool" in names


def test_every_metric_is_shown_or_has_an_alert():
    """A metric on no dashboard is not found by users."""
    shown = " ".join(expr for _, expr in QUERIES)
    rules = (ROOT / "cluster" / "deploy" / "prometheus" / "streamssl.rules.yml").read_text()
    hidden = {
        metric.exposed
        for metric in METRICS
        if not any(name in shown + rules for name in metric.exposed_names)
    }
    assert hidden == set()
