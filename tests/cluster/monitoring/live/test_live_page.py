"""The live page in a real browser: charts are drawn, numbers agree, nothing from outside."""

import json
import re
import socket
import time
import urllib.request

import pytest
from cluster.monitoring.live.gallery_pages import SCRIPTS
from prometheus_client.parser import text_string_to_metric_families

from cluster.monitoring.live.live_page import show_live
from cluster.monitoring.metrics_server import MetricsServer
from tests.cluster.browser import Visit, needs_browser, open_browser
from tests.cluster.made_run import MadeRun

pytestmark = needs_browser

# Points of the drawn line, and how many bars there are.
DRAWN = """[...document.querySelectorAll('.chart')].filter(one => one.offsetParent)
    .map(one => [one.id, one.querySelectorAll('.scatterlayer .trace, .barlayer .point').length])"""
OF_A_RUN = {"chart-wait", "chart-lead", "chart-rates", "chart-readers", "chart-phases",
            "chart-loss", "chart-prototypes", "chart-rejects", "chart-actors",
            "chart-effective_rank", "chart-learning_rate"}  # fmt: skip


class Served:
    """A made run behind a server of its own."""

    def __init__(self, run, port=0):
        self.run = run
        self.server = MetricsServer(run.metrics, port, show_live(run.metrics))
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


@pytest.fixture
def served():
    with Served(MadeRun()) as served:
        yield served


def drawn(visit):
    """How many lines and bars every chart has that can be seen."""
    visit.wait_for("document.querySelectorAll('#chart-loss .scatterlayer .trace').length > 0")
    visit.wait_for("document.querySelectorAll('#chart-actors .scatterlayer .trace').length > 0")
    visit.wait_for(
        "[...document.querySelectorAll('.chart')].filter(one => one.offsetParent)"
        ".every(one => one.querySelector('.main-svg'))"
    )
    return dict(visit.tell(DRAWN))


def test_every_chart_is_drawn_and_nothing_goes_wrong(browser, served):
    """A page that is half empty answers nothing, and its policy could stop its own charts."""
    with Visit(browser, served.url) as visit:
        found = drawn(visit)
        assert visit.troubles == []
    assert set(found) == OF_A_RUN and min(found.values()) >= 1
    assert found["chart-rates"] == 3 and found["chart-rejects"] == 2


def test_thresholds_are_drawn(browser, served):
    """A loss on its plateau looks like any other line."""
    with Visit(browser, served.url) as visit:
        drawn(visit)
        shapes = visit.tell("document.getElementById('chart-loss')._fullLayout.shapes[0].y0")
        lines = visit.tell("document.querySelectorAll('#chart-loss .shapelayer path').length")
    assert shapes == pytest.approx(8.006, abs=1e-3) and lines == 1


def test_what_is_drawn_is_what_metrics_say(browser, served):
    """Page and Prometheus would tell two stories."""
    with Visit(browser, served.url) as visit:
        drawn(visit)
        series = {
            sample.name: sample.value
            for family in text_string_to_metric_families(served.get("metrics")[0])
            for sample in family.samples
        }
        loss = visit.tell("document.getElementById('chart-loss').data[0].y.at(-1)")
        step = visit.tell("document.getElementById('chart-loss').data[0].x.at(-1)")
        bars = visit.tell("document.getElementById('chart-rejects').data[0].x")
        words = visit.page.inner_text("#progress")
    assert loss == series["streamssl_loss"] and step == series["streamssl_train_step"]
    assert bars == [300, 900]
    assert re.match(r"Step 600 of 2,000", words)


def test_every_value_of_the_state_is_that_of_metrics(served):
    """Page and Prometheus would tell two stories, under two names."""
    served.run.metrics.values.set({("pool_ready", "reader", 'a "b"'): 3})
    values = json.loads(served.get("state")[0])["values"]
    lines = [line for line in served.get("metrics")[0].splitlines() if line[0] != "#"]
    series = {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}
    assert len(values) > 100 and values.items() <= series.items()


def test_a_step_is_on_the_page_within_three_seconds(browser, served):
    """A live page that lags would be believed."""
    line = "document.querySelector('#chart-loss .js-line').getAttribute('d')"
    with Visit(browser, served.url) as visit:
        drawn(visit)
        before = visit.tell(line)
        served.run.go_on()
        began = time.monotonic()
        visit.wait_for(
            "document.getElementById('progress').textContent.includes('602') && "
            "document.getElementById('chart-loss').data[0].x.at(-1) === 602 && "
            f"{line} !== '{before}'"
        )
        assert time.monotonic() - began < 3


def test_charts_go_on_from_the_first_step_of_a_run(browser):
    """Whoever opens the page before the first step would look at empty charts for ever."""
    run = MadeRun(seconds=0)
    with Served(run) as served, Visit(browser, served.url) as visit:
        visit.wait_for("document.getElementById('run').textContent === 'runs/made'")
        for _ in range(3):
            run.go_on()
            time.sleep(1.1)
        visit.wait_for("document.getElementById('chart-loss').data[0].x.at(-1) === 6")
        line = visit.tell("document.querySelector('#chart-loss .js-line').getAttribute('d')")
    assert len(re.findall("[ML]", line)) >= 2 and line.count(",") >= 2


def test_the_page_survives_a_restart_of_the_run(browser):
    """Whoever watches over night would find a page of yesterday."""
    first = Served(MadeRun(seconds=120))
    with Visit(browser, first.url) as visit:
        with first:
            drawn(visit)
        visit.wait_for("document.getElementById('link').textContent.startsWith('no answer')")
        with Served(MadeRun(seconds=30), first.port):
            visit.wait_for("document.getElementById('link').textContent === 'training'")
            visit.wait_for("document.getElementById('chart-loss').data[0].x.length < 60")
            assert visit.page.inner_text("#progress").startswith("Step 60 ")


@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_scrolls_one_way_only(browser, served, width):
    """What is beside the screen is not read."""
    with Visit(browser, served.url, width=width) as visit:
        drawn(visit)
        assert visit.tell("document.documentElement.scrollWidth") == width


def test_light_and_dark_are_those_of_the_system(browser, served):
    """Black on black."""
    found = {}
    for scheme in ("light", "dark"):
        with Visit(browser, served.url, scheme=scheme) as visit:
            drawn(visit)
            found[scheme] = visit.tell(
                "[getComputedStyle(document.body).backgroundColor,"
                " document.getElementById('chart-loss').data[0].line.color,"
                " getComputedStyle(document.querySelector('#chart-loss .xtick text')).fill]"
            )
    assert all(one != other for one, other in zip(found["light"], found["dark"], strict=True))


def test_colours_change_while_the_page_is_open(browser, served):
    """At dusk half of the page would change, and the charts would not."""
    with Visit(browser, served.url) as visit:
        drawn(visit)
        before = visit.tell("document.getElementById('chart-loss').data[0].line.color")
        visit.page.emulate_media(color_scheme="dark")
        visit.wait_for(f"document.getElementById('chart-loss').data[0].line.color !== '{before}'")


def test_nothing_is_loaded_from_elsewhere(browser, served):
    """A laptop on a train, a cluster without a way out."""
    asked = []
    with Visit(browser, "about:blank") as visit:
        visit.page.on("request", lambda one: asked.append(one.url))
        visit.page.goto(served.url)
        drawn(visit)
    assert len(asked) > len(SCRIPTS)
    assert {url for url in asked if not url.startswith((served.url, "data:"))} == set()


def test_questions_without_an_answer_are_not_asked(browser):
    """One process has no nodes, and asking for them would look like a fault."""
    with Served(MadeRun(cluster="none")) as served, Visit(browser, served.url) as visit:
        visit.wait_for("document.querySelector('#learning .answer').textContent !== ''")
        hidden = visit.tell("[...document.querySelectorAll('section[hidden]')].map(one => one.id)")
        assert visit.page.inner_text("#who .answer").startswith("One process.")
        assert visit.tell("document.getElementById('table-nodes').hidden") is True
    assert set(hidden) == {"seen", "cost"}


def test_actors_are_listed_with_their_pages(browser, served):
    """Whoever sees here that a trainer hangs needs to know where to ask it."""
    with Visit(browser, served.url) as visit:
        visit.wait_for("document.querySelectorAll('#table-actors tr').length > 8")
        rows = visit.tell("[...document.querySelectorAll('#table-actors tr')].map(row => "
                          "[...row.children].map(cell => cell.textContent))")  # fmt: skip
    assert rows[0][-1] == "pages"
    assert [row[-1] for row in rows[1:4]] == ["10.0.0.1:9500", "10.0.0.1:9501", ""]


def test_words_of_strangers_are_shown_and_never_obeyed(browser, served):
    """A key in a tar would run in the browser of whoever looks."""
    evil = "<img src=x onerror=alert(1)>"
    tile = {"name": "rejects-1", "key": evil, "reason": "blank", "detail": "", "where": evil,
            "step": 1, "image": None, "waits": False}  # fmt: skip
    served.run.metrics.sections["gallery"] = lambda: {"crops": [], "rejects": [tile]}
    with Visit(browser, served.url) as visit:
        visit.wait_for("document.querySelectorAll('#gallery-rejects .tile').length === 1")
        assert evil in visit.page.inner_text("#gallery-rejects")
        assert visit.tell("document.querySelectorAll('#gallery-rejects img').length") == 0


def test_the_page_says_what_it_may_load(served):
    """Without a policy, one hole in a script would be enough."""
    for path in ("", "live/page.js", "live/plotly.min.js"):
        policy = served.get(path)[1]["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "script-src 'self';" in policy
        assert "http" not in policy and "unsafe-eval" not in policy


def test_the_page_is_served_to_this_machine_alone(served):
    """Whoever shares the network would see the images."""
    with pytest.raises(ConnectionRefusedError):  # every address would answer for 127.0.0.2, too
        socket.create_connection(("127.0.0.2", served.port), timeout=1)
