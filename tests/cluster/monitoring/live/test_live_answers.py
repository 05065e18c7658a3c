"""The page's questions and their answers, on hand-made runs."""

import time

import pytest

from cluster.monitoring.live.live_answers import answers
from cluster.monitoring.run_state import RunOutcome
from tests.cluster.made_run import MadeRun


def said(run, **changes):
    state = run.metrics.state()
    now = max([run.began, *state["history"]["time"]])
    return answers({**state, "now": now, **changes})


def test_a_healthy_run_is_told_to_be_one():
    """Whoever glances at the page must see that all is well."""
    found = said(MadeRun())
    assert {name: one["short"] for name, one in found.items()} == {
        "progress": "", "stalled": "No.", "stage": "Training is.", "learning": "Yes.",
        "rejected": "0.78%.", "who": "All.",
    }  # fmt: skip
    assert found["stalled"]["text"] == (
        "2% of the last 60 s went by waiting for images; 512 images/s are trained on, "
        "490 ms a step."
    )
    assert found["who"]["text"] == "6 of 6 readers and 2 of 2 trainers on 3 nodes."
    assert found["progress"]["text"] == "Step 600 of 2,000, about 12 min left."


def test_a_starved_run_names_the_stage_that_starves_it():
    """The user would buy GPUs where cores are missing."""
    run = MadeRun()
    for _ in range(60):
        run.go_on(waiting=0.6)
    found = said(run)
    assert found["stalled"]["short"] == "Yes." and found["stalled"]["tone"] == "bad"
    assert found["stage"]["short"] == "Cropping is."


@pytest.mark.parametrize(
    ("on", "short"),
    [("bucket", "The bucket or the network is."),
     ("lease", "The way from readers to trainers is.")],
)  # fmt: skip
def test_readers_that_wait_are_not_blamed(on, short):
    """More readers would not help where the bucket is slow."""
    run = MadeRun()
    for _ in range(60):
        run.go_on(waiting=0.6)
        run.metrics.values.count(("reader_blocked_seconds", on), 9.0)
    assert said(run)["stage"]["short"] == short


def test_a_run_that_stands_still_is_told_to():
    """A hang is the first thing that anybody asks for."""
    run = MadeRun()
    found = said(run, now=time.time() + 120)
    assert found["stalled"]["tone"] == "bad" and "No step was finished" in found["stalled"]["text"]


def test_what_is_beyond_its_threshold_is_named():
    """A collapse must not be hidden behind a falling loss."""
    run = MadeRun()
    run.metrics.values.set({("effective_rank",): 1.4})
    learning = said(run)["learning"]
    assert learning["tone"] == "watch"
    assert learning["text"] == "Effective rank is 1.4, below 3."


def test_a_collapse_is_told_before_anything_else():
    """The loss may fall while all features become one."""
    run = MadeRun()
    run.metrics.health(["effective_rank", "feature_std"], ["effective_rank"])
    learning = said(run)["learning"]
    assert (learning["tone"], learning["short"]) == ("bad", "It may be collapsing.")
    assert learning["text"].startswith("Effective rank: only")


def test_a_loss_that_stands_still_or_rises_is_not_called_falling():
    """Yes would be a lie."""
    run = MadeRun()
    column = run.metrics.state()["history"]
    for slope, short in ((0.0, "It is even."), (0.01, "The loss rises.")):
        loss = [5.0 * (1 + slope * place) for place in range(len(column["time"]))]
        changed = {**column, "streamssl_loss": loss}
        assert said(run, history=changed)["learning"]["short"] == short


def test_an_ended_run_is_told_as_a_whole():
    """The last minute of a run is not what it was."""
    run = MadeRun()
    run.metrics.outcome = RunOutcome(at=time.time())
    found = said(run)
    assert found["learning"]["short"] == "It is done."
    assert "of the run went by" in found["stalled"]["text"]
    assert found["progress"]["text"] == "Step 600 of 2,000, after 5 min."
    assert found["who"]["short"] == "Nobody now."


def test_missing_actors_are_counted():
    """Four readers do the work of six more slowly."""
    run = MadeRun()
    run.metrics.values.set({("actors", "reader"): 4})
    who = said(run)["who"]
    assert who["short"] == "Not all." and who["text"].startswith("4 of 6 readers")


def test_crops_are_announced_where_there_are_any():
    """A heading over nothing."""
    state = MadeRun().metrics.state()
    assert "seen" not in answers(state) and answers(state, num_crops=1)["seen"]["short"] == "This."


def test_costs_are_told_where_prices_are_known():
    """Dollars for a million images is what compares clusters."""
    run = MadeRun()
    run.metrics.values.count(("node_cost_dollars", "spot"), 3.0)
    trained = 300 * 512
    assert said(run)["cost"] == {
        "tone": "quiet",
        "short": "$3.00 so far.",
        "text": f"${3 / trained * 1e6:,.2f} for a million images.",
    }


def test_nothing_is_said_of_a_run_that_has_not_begun():
    """Half a sentence about nothing."""
    run = MadeRun(seconds=0)
    assert set(said(run)) == set()
    run.metrics.run = None
    assert said(run) == {}


def test_rejects_are_told_with_their_share_and_first_reason():
    """One in two hundred is noise, one in five is a wrong path."""
    run = MadeRun()
    assert said(run)["rejected"]["text"] == (
        "1,200 of 154,800 samples, most of them for “too small”."
    )
    run.metrics.values.count(("rejects", "undecodable"), 50_000)
    assert said(run)["rejected"]["tone"] == "watch"
