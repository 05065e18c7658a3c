"""The page's questions, answered in a few words from the state of a run. Pure: no clock, no run.

An answer has a tone ("good", "watch", "bad", "quiet"), the short of it, and a sentence. A question
that cannot be answered yet, or that this run has no part in, has no answer and is not asked.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Final, Literal

from cluster.monitoring.metric_catalogue import CATALOGUE, METRICS
from cluster.monitoring.metric_values import series

Tone = Literal["good", "watch", "bad", "quiet"]
State = Mapping[str, Any]

WINDOW_SECONDS: Final = 60.0
# Shares of time that are spent waiting for images.
_LITTLE, _MUCH = 0.05, 0.3
_MIN_STEPS: Final = 100
_LEARNING: Final = frozenset(one.exposed for one in METRICS if one.group == "learning")
# A loss that moved by less than these shares of itself stands still: its noise is larger.
_FALLING, _RISING = 0.001, 0.05


@dataclass(frozen=True, slots=True)
class Answer:
    tone: Tone
    short: str
    text: str


_SEEN: Final = Answer(
    "quiet", "This.", "Crops of samples that were trained on lately, as the encoder saw them."
)


def answers(state: State, num_crops: int = 0) -> dict[str, dict[str, str]]:
    """Answers by question. The history of `state` must reach back a minute, or to the beginning.

    `num_crops`: of how many samples there are crops to look at.
    """
    run = Run(state)
    found = {
        "progress": _progress(run),
        "stalled": _stalled(run),
        "stage": _stage(run),
        "learning": _learning(run),
        "rejected": _rejected(run),
        "seen": _SEEN if num_crops else None,
        "who": _who(run),
        "cost": _cost(run),
    }
    return {name: asdict(answer) for name, answer in found.items() if answer is not None}


class Run:
    """A state, and how its counters went in the last minute; of an ended run, in all of it."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.info: Mapping[str, Any] = state["run"] or {}
        self.status: Mapping[str, Any] | None = state["status"]
        self.ended = self.info.get("ended") is not None
        columns = state["history"]
        times = columns["time"]
        since = -1.0 if self.ended else state["now"] - WINDOW_SECONDS
        inside = (index for index, time in enumerate(times) if time >= since)
        self._first = next(inside, len(times) - 1) if times else None
        self._columns = columns
        first = state["now"] if self._first is None else times[self._first]
        self.seconds = (self.info.get("ended") or state["now"]) - first

    def value(self, name: str, *labels: str) -> float | None:
        """A number of this moment."""
        found: float | None = self.state["values"].get(series(CATALOGUE[name], labels))
        return found

    def sum_of(self, name: str) -> dict[str, float]:
        """All series of a metric, by their whole names."""
        exposed = CATALOGUE[name].exposed
        values = self.state["values"].items()
        return {key: value for key, value in values if key.partition("{")[0] == exposed}

    def grown(self, name: str) -> float:
        """How much a series grew in the window, by its whole name."""
        now: float = self.state["values"].get(name, 0.0)
        column = self._columns.get(name)
        if self._first is None or column is None or self.ended:
            return now
        return max(0.0, now - (column[self._first] or 0.0))

    def counted(self, name: str, *labels: str) -> float:
        """How much a counter grew in the window."""
        return self.grown(series(CATALOGUE[name], labels))

    def course(self, name: str) -> tuple[float, float] | None:
        """A noisy gauge in the first and in the last third of the window: medians."""
        column = self._columns.get(CATALOGUE[name].exposed, [])[self._first or 0 :]
        known = [one for one in column if one is not None]
        third = len(known) // 3
        if self._first is None or not third:
            return None
        return median(known[:third]), median(known[-third:])

    @property
    def num_steps(self) -> float:
        return self.grown(f"{CATALOGUE['step_seconds'].exposed}_count")

    @property
    def step_seconds(self) -> float:
        return self.grown(f"{CATALOGUE['step_seconds'].exposed}_sum")

    @property
    def wait_share(self) -> float | None:
        """The part of the time of steps that was spent waiting for images."""
        waited = self.counted("data_wait_seconds")
        return waited / (waited + self.step_seconds) if self.num_steps else None


def _progress(run: Run) -> Answer | None:
    step, num_steps = run.value("train_step"), run.info.get("num_steps")
    if step is None or not num_steps:
        return None
    words = f"Step {step:,.0f} of {num_steps:,}"
    if run.ended:
        words += f", after {_duration(run.info['ended'] - run.info['began'])}"
    elif run.num_steps and run.seconds > 0:
        words += f", about {_duration(run.seconds / run.num_steps * (num_steps - step))} left"
    return Answer("quiet", "", f"{words}.")


def _stalled(run: Run) -> Answer | None:
    share, step = run.wait_share, run.value("train_step")
    if share is None:
        if step is None or run.ended:
            return None
        return Answer("bad", "Yes.", f"No step was finished in the last {_duration(run.seconds)}.")
    when = "of the run" if run.ended else f"of the last {_duration(run.seconds)}"
    rate = run.counted("samples", "trained") / max(run.seconds, 1e-9)
    text = (
        f"{_part(share)} {when} went by waiting for images; {_number(rate)} images/s are "
        f"trained on, {_seconds(run.step_seconds / run.num_steps)} a step."
    )
    if run.ended:
        text = text.replace("are trained", "were trained")
    tone, short = _wait_tone(share)
    return Answer(tone, short, text)


def _wait_tone(share: float) -> tuple[Tone, str]:
    if share < _LITTLE:
        return "good", "No."
    return ("watch", "A little.") if share < _MUCH else ("bad", "Yes.")


def _stage(run: Run) -> Answer | None:
    share = run.wait_share
    if share is None:
        return None
    busy = run.counted("reader_busy_seconds", "read"), run.counted("reader_busy_seconds", "crop")
    for_lease = run.counted("reader_blocked_seconds", "lease")
    for_bucket = run.counted("reader_blocked_seconds", "bucket")
    if share < _LITTLE:
        return Answer("good", "Training is.", "Images lie ready before they are asked for.")
    if for_bucket > busy[1] or busy[0] > 2 * busy[1] > 0:
        text = "Readers spend most of their time waiting for bytes."
        return Answer("watch", "The bucket or the network is.", text)
    total = busy[1] + for_lease + for_bucket
    if for_lease > 0.5 * total:
        text = "Readers are idle half of their time and the trainer waits: look at the network."
        return Answer("watch", "The way from readers to trainers is.", text)
    rate = run.counted("samples", "cropped") / max(run.seconds, 1e-9)
    text = f"{_number(rate)} images/s are cropped; more readers, or more cores, would help."
    return Answer("watch", "Cropping is.", text)


def _learning(run: Run) -> Answer | None:
    loss, course = run.value("loss"), run.course("loss")
    if loss is None:
        return None
    found = [_label(name) for name, value in run.sum_of("collapsing").items() if value]
    if found:
        text = f"{_listed(found)}: only collapsed encoders are there; see the runbook."
        return Answer("bad", "It may be collapsing.", text)
    beyond = list(_beyond(run))
    if beyond:
        return Answer("watch", "Look at it.", f"{_listed(beyond)}.")
    if course is None:
        return Answer("quiet", "It has begun.", f"The loss is {loss:.4g}.")
    before, now = course
    if run.ended:
        return Answer("quiet", "It is done.", f"The loss went from {before:.4g} to {now:.4g}.")
    since = _duration(run.seconds)
    if now < before - _FALLING * abs(before):
        text = f"The loss fell from {before:.4g} to {now:.4g} in the last {since}."
        return Answer("good", "Yes.", text)
    if now > before + _RISING * abs(before):
        text = f"The loss rose from {before:.4g} to {now:.4g} in the last {since}."
        return Answer("watch", "The loss rises.", text)
    text = f"The loss is about {now:.4g} since {since}; features may improve while it stands still."
    return Answer("quiet", "It is even.", text)


def _beyond(run: Run) -> Iterable[str]:
    """What is beyond its threshold. In the first steps features may be anything."""
    if (run.value("train_step") or 0) < _MIN_STEPS:
        return
    for name, limits in run.state["thresholds"].items():
        value, words = run.state["values"].get(name), _words(name)
        if value is None or name not in _LEARNING:
            continue
        if value < limits.get("low", value):
            yield f"{words} is {value:.3g}, below {limits['low']:.3g}"
        elif value > limits.get("high", value):
            yield f"{words} is {value:.3g}, above {limits['high']:.3g}"


def _rejected(run: Run) -> Answer | None:
    read = run.value("samples", "trained")
    if not read:
        return None
    reasons = run.sum_of("rejects")
    number = sum(reasons.values())
    if not number:
        return Answer("good", "Nothing.", f"All of {read:,.0f} samples were good.")
    worst = max(reasons, key=lambda name: reasons[name])
    share = number / (number + read)
    text = f"{number:,.0f} of {number + read:,.0f} samples, most of them for “{_label(worst)}”."
    return Answer("watch" if share > _LITTLE else "good", f"{_percent(share)}.", text)


def _who(run: Run) -> Answer | None:
    if run.status is None:
        if run.info.get("cluster") != "none":
            return None
        return Answer("quiet", "One process.", "It reads in threads and trains on this machine.")
    wanted: Mapping[str, int] = run.status["wanted"]
    there = {role: run.value("actors", role) or 0.0 for role in wanted}
    parts = [
        f"{there[role]:.0f} of {number} {_plural(role, number)}" for role, number in wanted.items()
    ]
    num_nodes = len(run.status["nodes"])
    text = f"{_listed(parts)} on {num_nodes} {_plural('node', num_nodes)}."
    if run.ended:
        return Answer("quiet", "Nobody now.", f"At the end there were {text}")
    all_there = all(there[role] >= number for role, number in wanted.items())
    return Answer("good", "All.", text) if all_there else Answer("watch", "Not all.", text)


def _cost(run: Run) -> Answer | None:
    dollars = sum(run.sum_of("node_cost_dollars").values())
    trained = run.value("samples", "trained")
    if not dollars or not trained:
        return None
    text = f"${dollars / trained * 1e6:,.2f} for a million images."
    return Answer("quiet", f"${dollars:,.2f} so far.", text)


def _words(name: str) -> str:
    """A series as a person calls it."""
    name = name.partition("{")[0].removeprefix("streamssl_")
    return name.removesuffix("_total").removesuffix("_ratio").replace("_", " ")


def _label(name: str) -> str:
    """What a series with one label is about."""
    return name.partition('"')[2].rstrip('"}').replace("_", " ")


def _listed(parts: list[str]) -> str:
    words = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
    return words[:1].upper() + words[1:]


def _plural(word: str, number: float) -> str:
    return word if number == 1 else f"{word}s"


def _part(share: float) -> str:
    return f"{share:.0%}" if share >= 0.005 else "Less than 1%"


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else f"{share:.2%}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 1 else f"{1000 * value:.0f} ms"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
