"""The live page in a real browser draws all charts, and agrees with /metrics."""

import json
import re
import socket
import time
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.monitoring.live.live_page import add_live_page
from cluster.monitoring.live.page_files import SCRIPTS
from cluster.monitoring.metrics_server import MetricsServer
from streamssl.monitoring.learning_section import LEARNING_SECTION
from tests.cluster.browser import Visit, needs_browser, open_browser
from tests.cluster.monitoring.live.made_run import MadeRun

pytestmark = needs_browser

# Visible charts by id, and the number of their lines and bars.
DRAWN = """[...document.querySelectorAll('.chart')].filter(one => one.offsetParent)
    .map(one => [one.id, one.querySelectorAll('.scatterlayer .trace, .barlayer .point').length])"""
CHARTS = {"chart-wait", "chart-lead", "chart-rates", "chart-readers", "chart-phases",
          "chart-loss", "chart-prototypes", "chart-rejects", "chart-actors",
          "chart-effective_rank", "chart-learning_rate"}  # fmt: skip
LINE = "document.querySelector('#chart-loss .js-line').getAttribute('d')"
POINTS = "document.getElementById('chart-loss')?.data?.[0]"


class ServedRun:
    """A made run with a server of its own."""

    def __init__(self, run, port=0):
        self.run = run
        self.server = MetricsServer(run.hub, port, add_live_page(run.hub, [LEARNING_SECTION]))
        self.url = self.server.page
        self.port = int(self.url.split(":")[-1].rstrip("/"))

    def get(self, path):
        with urllib.request.urlopen(self.url + path) as answer:
            return answer.read().decode(), answer.headers

    def __enter__(self):
        self.server.__enter__()
        return self

    def __exit__(self, *_):
        self.server.__exit__(None, None, None)


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def served():
    """A run that no test changes."""
    with ServedRun(MadeRun()) as served:
        yield served


def drawn(visit):
    """Return the number of lines and bars of every visible chart, once all are drawn."""
    visit.wait_for("document.querySelectorAll('#chart-loss .scatterlayer .trace').length > 0")
    visit.wait_for("document.querySelectorAll('#chart-actors .scatterlayer .trace').length > 0")
    visit.wait_for(
        "[...document.querySelectorAll('.chart')].filter(one => one.offsetParent)"
        ".every(one => one.querySelector('.main-svg'))"
    )
    return dict(visit.evaluate(DRAWN))


def test_the_page_draws_all_charts_from_this_machine_only(browser, served):
    """A page that is half empty answers nothing; a machine without a network must show it, too."""
    requested = []
    with Visit(browser, "about:blank") as visit:
        visit.page.on("request", lambda one: requested.append(one.url))
        visit.page.goto(served.url)
        found = drawn(visit)
        assert visit.errors == []
        threshold = visit.evaluate("document.getElementById('chart-loss')._fullLayout.shapes[0].y0")
        lines = visit.evaluate("document.querySelectorAll('#chart-loss .shapelayer path').length")
        sections = visit.evaluate(
            "[...document.querySelectorAll('main > section')].map(one => one.id)"
        )
    assert set(found) == CHARTS and min(found.values()) >= 1
    assert found["chart-rates"] == 3 and found["chart-rejects"] == 2
    assert threshold == pytest.approx(8.006, abs=1e-3) and lines == 1
    assert sections == ["stalled", "stage", "learning", "rejected", "seen", "who", "cost"]
    assert len(requested) > len(SCRIPTS)
    assert {url for url in requested if not url.startswith((served.url, "data:"))} == set()


@pytest.mark.slow
def test_the_page_shows_the_numbers_of_metrics(browser, served):
    """The page and Prometheus would disagree."""
    lines = [line for line in served.get("metrics")[0].splitlines() if line[0] != "#"]
    series = {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}
    with Visit(browser, served.url) as visit:
        drawn(visit)
        values = visit.evaluate("fetch('/state').then(one => one.json()).then(one => one.values)")
        loss, step = visit.evaluate(f"[{POINTS}.y.at(-1), {POINTS}.x.at(-1)]")
        bars = visit.evaluate("document.getElementById('chart-rejects').data[0].x")
        words = visit.page.inner_text("#progress")
        rows = visit.evaluate("[...document.querySelectorAll('#table-actors tr')].map(row => "
                              "[...row.children].map(cell => cell.textContent))")  # fmt: skip
    assert len(values) > 100 and values.items() <= series.items()
    assert loss == series["streamssl_loss"] and step == series["streamssl_train_step"]
    assert bars == [300, 900]
    assert re.match(r"Step 600 of 2,000", words)
    assert rows[0][-1] == "pages"
    assert [row[-1] for row in rows[1:4]] == ["10.0.0.1:9500", "10.0.0.1:9501", ""]


def test_escaped_labels_agree_with_metrics():
    """A pool with a quote in its name would have two series names."""
    run = MadeRun(seconds=1)
    run.hub.values.set({("pool_ready", "reader", 'a "b"'): 3})
    with ServedRun(run) as served:
        values = json.loads(served.get("state")[0])["values"]
        page = served.get("metrics")[0]
    [name] = [name for name in values if "pool_ready" in name]
    assert f"{name} 3.0\n" in page
    assert len(list(text_string_to_metric_families(page))) > 10


@pytest.mark.slow
def test_a_new_step_is_shown_within_three_seconds(browser):
    """A page that lags would be believed; one that was opened early would stay empty."""
    run = MadeRun(seconds=0)
    with ServedRun(run) as served, Visit(browser, served.url) as visit:
        visit.wait_for("document.getElementById('run').textContent === 'runs/made'")
        for seconds in (6, 3):
            run.go_on()
            run.hub.add_to_history(time.time() - seconds)
        visit.wait_for(f"{POINTS}.x.at(-1) === 4 && document.querySelector('#chart-loss .js-line')")
        before = visit.evaluate(LINE)
        run.go_on()
        began = time.monotonic()
        visit.wait_for(
            "document.getElementById('progress').textContent.includes('Step 6 ') && "
            f"{POINTS}.x.at(-1) === 6 && {LINE} !== '{before}'"
        )
        assert time.monotonic() - began < 3
        line = visit.evaluate(LINE)
    assert len(re.findall("[ML]", line)) >= 2 and line.count(",") >= 2


@pytest.mark.slow
def test_the_page_survives_a_restart_of_the_run(browser):
    """A page that was left open would show the run of yesterday."""
    first = ServedRun(MadeRun(seconds=120))
    with Visit(browser, first.url) as visit:
        with first:
            drawn(visit)
        visit.wait_for("document.getElementById('link').textContent.startsWith('no answer')")
        with ServedRun(MadeRun(seconds=30), first.port):
            visit.wait_for("document.getElementById('link').textContent === 'training'")
            visit.wait_for(f"{POINTS}.x.length < 60")
            assert visit.page.inner_text("#progress").startswith("Step 60 ")


@pytest.mark.slow
def test_the_page_fits_a_phone_and_follows_the_colours_of_the_system(browser, served):
    """Text beside the screen or black on black cannot be read."""
    colours = (
        "[getComputedStyle(document.body).backgroundColor,"
        f" {POINTS}.line.color,"
        " getComputedStyle(document.querySelector('#chart-loss .xtick text')).fill]"
    )
    with Visit(browser, served.url, width=320) as visit:
        drawn(visit)
        assert visit.evaluate("document.documentElement.scrollWidth") == 320
        light = visit.evaluate(colours)
        visit.page.emulate_media(color_scheme="dark")
        visit.wait_for(f"{POINTS}.line.color !== '{light[1]}'")
        dark = visit.evaluate(colours)
    assert all(one != other for one, other in zip(light, dark, strict=True))


@pytest.mark.slow
def test_unanswered_questions_are_hidden_and_keys_stay_text(browser):
    """One process has no nodes; a key could inject a script."""
    evil = "<img src=x onerror=document.title='owned'>"
    tile = {"name": "rejects-1", "key": evil, "reason": "blank", "detail": evil, "where": evil,
            "step": 1, "image": None, "waits": False}  # fmt: skip
    run = MadeRun(seconds=120, cluster="none")
    with ServedRun(run) as served:
        run.hub.sections["gallery"] = lambda: {"crops": [], "rejects": [tile]}
        with Visit(browser, served.url) as visit:
            visit.wait_for("document.querySelector('#learning .answer').textContent !== ''")
            hidden = visit.evaluate(
                "[...document.querySelectorAll('section[hidden]')].map(one => one.id)"
            )
            assert visit.page.inner_text("#who .answer").startswith("One process.")
            assert visit.evaluate("document.getElementById('table-nodes').hidden") is True
            visit.wait_for("document.querySelectorAll('#gallery-rejects .tile').length === 1")
            assert evil in visit.page.inner_text("#gallery-rejects")
            assert visit.evaluate("document.querySelectorAll('#gallery-rejects img').length") == 0
    assert set(hidden) == {"seen", "cost"}


def test_the_page_has_a_policy_and_is_served_to_this_machine_only(served):
    """A hole in a script would be enough, and every user of the network would see the images."""
    for path in ("", "live/page.js", "live/plotly.min.js"):
        policy = served.get(path)[1]["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "script-src 'self';" in policy
        assert "http" not in policy and "unsafe-eval" not in policy
    with pytest.raises(ConnectionRefusedError):  # every address would answer for 127.0.0.2, too
        socket.create_connection(("127.0.0.2", served.port), timeout=1)
