"""Answers to the operational questions of the live page, from the state of a run. Pure functions.

A question that cannot be answered yet, or that does not apply to this run, has no answer, and the
page hides it.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from cluster.monitoring.live.page_section import Answer, PageSection, Tone
from cluster.monitoring.live.phrases import (
    duration,
    label_words,
    listed,
    percent,
    plural,
    rate,
    share_of_time,
    step_time,
)
from cluster.monitoring.live.run_window import RunWindow

# Bounds on the share of time that is spent waiting for images.
_SMALL_SHARE, _LARGE_SHARE = 0.05, 0.3

_SEEN: Final = Answer(
    "quiet", "These crops.", "They are of samples of recent steps, as the trainer received them."
)


def answers(
    run: RunWindow, sections: Sequence[PageSection] = (), num_crops: int = 0
) -> dict[str, dict[str, str]]:
    """Return answers by section, those of `sections` included.

    `num_crops` is the number of samples whose crops the gallery shows.
    """
    found = {
        "progress": _progress(run),
        "stalled": _stalled(run),
        "stage": _stage(run),
        **{section.id: section.answer(run) for section in sections},
        "rejected": _rejected(run),
        "seen": _SEEN if num_crops else None,
        "who": _who(run),
        "cost": _cost(run),
    }
    return {name: answer.to_json() for name, answer in found.items() if answer is not None}


def _progress(run: RunWindow) -> Answer | None:
    step, num_steps = run.value("train_step"), run.info.get("num_steps")
    if step is None or not num_steps:
        return None
    words = f"Step {step:,.0f} of {num_steps:,}"
    if run.ended:
        words += f", after {duration(run.info['ended'] - run.info['began'])}"
    elif run.num_steps and run.seconds > 0:
        words += f", about {duration(run.seconds / run.num_steps * (num_steps - step))} left"
    return Answer("quiet", "", f"{words}.")


def _stalled(run: RunWindow) -> Answer | None:
    share, step = run.wait_share, run.value("train_step")
    if share is None:
        if step is None or run.ended:
            return None
        return Answer("bad", "Yes.", f"No step was finished in the last {duration(run.seconds)}.")
    when = "of the run" if run.ended else f"of the last {duration(run.seconds)}"
    images = run.counted("samples", "trained") / max(run.seconds, 1e-9)
    was = "was" if run.ended else "is"
    text = (
        f"{share_of_time(share)} {when} was spent waiting for images; the speed {was} "
        f"{rate(images)} images/s, {step_time(run.step_seconds / run.num_steps)} a step."
    )
    tone, short = _wait_tone(share)
    return Answer(tone, short, text)


def _wait_tone(share: float) -> tuple[Tone, str]:
    if share < _SMALL_SHARE:
        return "good", "No."
    return ("watch", "A little.") if share < _LARGE_SHARE else ("bad", "Yes.")


def _stage(run: RunWindow) -> Answer | None:
    share = run.wait_share
    if share is None:
        return None
    busy = run.counted("reader_busy_seconds", "read"), run.counted("reader_busy_seconds", "crop")
    for_lease = run.counted("reader_blocked_seconds", "lease")
    for_bucket = run.counted("reader_blocked_seconds", "bucket")
    if share < _SMALL_SHARE:
        return Answer("good", "Training.", "Images are ready before they are needed.")
    if for_bucket > busy[1] or busy[0] > 2 * busy[1] > 0:
        text = "Readers spend most of their time waiting for bytes."
        return Answer("watch", "The bucket or the network.", text)
    total = busy[1] + for_lease + for_bucket
    if for_lease > 0.5 * total:
        text = "Readers are idle half of their time, but the trainer waits: check the network."
        return Answer("watch", "The transfer from readers to trainers.", text)
    images = run.counted("samples", "cropped") / max(run.seconds, 1e-9)
    text = f"Readers crop {rate(images)} images/s; more readers, or more cores, would help."
    return Answer("watch", "Cropping.", text)


def _rejected(run: RunWindow) -> Answer | None:
    read = run.value("samples", "trained")
    if not read:
        return None
    reasons = run.all_series("rejects")
    number = sum(reasons.values())
    if not number:
        return Answer("good", "Nothing.", f"All of {read:,.0f} samples were good.")
    worst = max(reasons, key=lambda name: reasons[name])
    share = number / (number + read)
    text = (
        f"{number:,.0f} of {number + read:,.0f} samples, most of them for “{label_words(worst)}”."
    )
    return Answer("watch" if share > _SMALL_SHARE else "good", f"{percent(share)}.", text)


def _who(run: RunWindow) -> Answer | None:
    if run.status is None:
        if run.info.get("cluster") != "none":
            return None
        return Answer("quiet", "One process.", "It reads in threads and trains on this machine.")
    wanted: Mapping[str, int] = run.status["wanted"]
    running = {role: run.value("actors", role) or 0.0 for role in wanted}
    parts = [
        f"{running[role]:.0f} of {number} {plural(role, number)}" for role, number in wanted.items()
    ]
    num_nodes = len(run.status["nodes"])
    text = f"{listed(parts)} on {num_nodes} {plural('node', num_nodes)}."
    if run.ended:
        return Answer("quiet", "No actor now.", f"At the end there were {text}")
    if all(running[role] >= number for role, number in wanted.items()):
        return Answer("good", "Yes.", text)
    return Answer("watch", "Not all.", text)


def _cost(run: RunWindow) -> Answer | None:
    dollars = sum(run.all_series("node_cost_dollars").values())
    trained = run.value("samples", "trained")
    if not dollars or not trained:
        return None
    text = f"${dollars / trained * 1e6:,.2f} for a million images."
    return Answer("quiet", f"${dollars:,.2f} so far.", text)
