"""Answers of the live page, on hand-made runs."""

import time

import pytest

from cluster.monitoring.live.live_answers import answers
from cluster.monitoring.live.run_window import RunWindow
from cluster.monitoring.run_state import RunOutcome
from streamssl.monitoring.catalogue import CATALOGUE
from streamssl.monitoring.learning_section import LEARNING_SECTION
from tests.cluster.monitoring.live.made_run import MadeRun


def answers_of(run, num_crops=0, **changes):
    state = run.hub.state()
    now = max([run.began, *state["history"]["time"]])
    window = RunWindow(CATALOGUE, {**state, "now": now, **changes})
    return answers(window, [LEARNING_SECTION], num_crops)


@pytest.fixture(scope="module")
def healthy():
    """A run that no test changes."""
    return MadeRun()


def test_a_healthy_run_is_shown_as_healthy(healthy):
    """A user must see at a glance that nothing needs attention."""
    found = answers_of(healthy)
    assert {name: one["short"] for name, one in found.items()} == {
        "progress": "", "stalled": "No.", "stage": "Training.", "learning": "Yes.",
        "rejected": "0.78%.", "who": "Yes.",
    }  # fmt: skip
    assert found["stalled"]["text"] == (
        "2% of the last 60 s was spent waiting for images; the speed is 512 images/s, "
        "490 ms a step."
    )
    assert found["who"]["text"] == "6 of 6 readers and 2 of 2 trainers on 3 nodes."
    assert found["progress"]["text"] == "Step 600 of 2,000, about 12 min left."
    assert found["rejected"]["text"] == ("1,200 of 154,800 samples, most of them for “too small”.")


@pytest.mark.parametrize(
    ("blocked_on", "short"),
    [("", "Cropping."),
     ("bucket", "The bucket or the network."),
     ("lease", "The transfer from readers to trainers.")],
)  # fmt: skip
def test_a_starved_run_names_the_slow_stage(blocked_on, short):
    """A user would buy GPUs instead of cores, or readers for a slow bucket."""
    run = MadeRun()
    for _ in range(60):
        run.go_on(waiting=0.6)
        if blocked_on:
            run.hub.values.count(("reader_blocked_seconds", blocked_on), 9.0)
    found = answers_of(run)
    assert found["stalled"]["short"] == "Yes." and found["stalled"]["tone"] == "bad"
    assert found["stage"]["short"] == short


def test_a_hanging_run_is_shown_as_stalled(healthy):
    """A run without a step for two minutes would look healthy."""
    found = answers_of(healthy, now=time.time() + 120)
    assert found["stalled"]["tone"] == "bad" and "No step was finished" in found["stalled"]["text"]


@pytest.mark.parametrize("is_over", [False, True])
def test_speeds_are_of_this_start(is_over):
    """Totals go on over starts, and a run of an hour would have the speed of a week."""
    earlier, again = MadeRun(seconds=300), MadeRun(seconds=0)
    again.hub.go_on_from(earlier.hub.values.totals())
    for _ in range(60):
        again.go_on()
    if is_over:
        again.hub.outcome = RunOutcome(at=again.began + 60)
    found = answers_of(again, now=again.began + 60)
    assert found["stalled"]["text"].endswith(" 512 images/s, 490 ms a step.")
    assert "1,440 of" in found["rejected"]["text"]


def test_crossed_thresholds_and_collapse_come_before_the_loss():
    """The loss may fall while all features become equal."""
    run = MadeRun()
    run.hub.values.set({("effective_rank",): 1.4})
    learning = answers_of(run)["learning"]
    assert learning["tone"] == "watch"
    assert learning["text"] == "Effective rank is 1.4, below 3."
    run.hub.values.set({("collapsing", "effective_rank"): 1.0, ("collapsing", "feature_std"): 0.0})
    learning = answers_of(run)["learning"]
    assert (learning["tone"], learning["short"]) == ("bad", "It may be collapsing.")
    assert learning["text"].startswith("Effective rank: only")


@pytest.mark.parametrize(
    ("slope", "short"), [(0.0, "The loss is constant."), (0.01, "The loss rises.")]
)
def test_only_a_falling_loss_is_called_learning(healthy, slope, short):
    """ "Yes" would be wrong."""
    column = healthy.hub.state()["history"]
    loss = [5.0 * (1 + slope * place) for place in range(len(column["time"]))]
    found = answers_of(healthy, history={**column, "streamssl_loss": loss})
    assert found["learning"]["short"] == short


def test_an_ended_run_is_described_as_a_whole():
    """The last minute of a run is not typical of it."""
    run = MadeRun()
    run.hub.outcome = RunOutcome(at=time.time())
    found = answers_of(run)
    assert found["learning"]["short"] == "It is done."
    assert "of the run was spent" in found["stalled"]["text"]
    assert found["progress"]["text"] == "Step 600 of 2,000, after 5 min."
    assert found["who"]["short"] == "No actor now."


def test_missing_actors_costs_and_many_rejects_are_shown():
    """A user would not see why the run is slow, expensive or short of data."""
    run = MadeRun()
    run.hub.values.set({("actors", "reader"): 4})
    run.hub.values.count(("node_cost_dollars", "spot"), 3.0)
    run.hub.values.count(("rejects", "undecodable"), 50_000)
    found = answers_of(run, num_crops=1)
    assert found["who"]["short"] == "Not all."
    assert found["who"]["text"].startswith("4 of 6 readers")
    assert found["cost"] == {
        "tone": "quiet",
        "short": "$3.00 so far.",
        "text": f"${3 / (300 * 512) * 1e6:,.2f} for a million images.",
    }
    assert found["rejected"]["tone"] == "watch" and found["seen"]["short"] == "These crops."


def test_a_run_without_steps_has_no_answers():
    """Half a sentence without numbers."""
    run = MadeRun(seconds=0)
    assert answers_of(run) == {}
    run.hub.run = None
    assert answers_of(run) == {}
