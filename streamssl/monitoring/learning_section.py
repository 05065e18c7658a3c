"""Live page section about learning: is the run still learning, and do the features collapse?"""

from collections.abc import Iterator
from typing import Final

from cluster.monitoring.live.page_section import Answer, ChartLine, PageChart, PageSection
from cluster.monitoring.live.phrases import duration, label_words, listed, series_words
from cluster.monitoring.live.run_window import RunWindow

# In the first steps readings of features may have any value.
_MIN_STEPS: Final = 100
# Relative changes of the loss that are larger than its noise.
_FALLING, _RISING = 0.001, 0.05


def learning_answer(run: RunWindow) -> Answer | None:
    """Answer from the limits of collapse, the thresholds, and the course of the loss."""
    loss = run.value("loss")
    if loss is None:
        return None
    found = [label_words(name) for name, value in run.all_series("collapsing").items() if value]
    if found:
        text = f"{listed(found)}: only collapsed encoders have such values; see the runbook."
        return Answer("bad", "It may be collapsing.", text)
    crossed = list(_crossed_thresholds(run))
    if crossed:
        return Answer("watch", "Check it.", f"{listed(crossed)}.")
    return _loss_answer(run, loss)


def _loss_answer(run: RunWindow, loss: float) -> Answer:
    trend = run.trend("loss")
    if trend is None:
        return Answer("quiet", "It has begun.", f"The loss is {loss:.4g}.")
    before, now = trend
    if run.ended:
        return Answer("quiet", "It is done.", f"The loss went from {before:.4g} to {now:.4g}.")
    since = duration(run.seconds)
    if now < before - _FALLING * abs(before):
        text = f"The loss fell from {before:.4g} to {now:.4g} in the last {since}."
        return Answer("good", "Yes.", text)
    if now > before + _RISING * abs(before):
        text = f"The loss rose from {before:.4g} to {now:.4g} in the last {since}."
        return Answer("watch", "The loss rises.", text)
    text = (
        f"The loss has been about {now:.4g} for {since}; features may improve at a constant loss."
    )
    return Answer("quiet", "The loss is constant.", text)


def _crossed_thresholds(run: RunWindow) -> Iterator[str]:
    if (run.value("train_step") or 0) < _MIN_STEPS:
        return
    names = {one.exposed for one in run.catalogue.values() if one.group == "learning"}
    for name, limits in run.state["thresholds"].items():
        value, words = run.state["values"].get(name), series_words(name)
        if value is None or name not in names:
            continue
        if value < limits.get("low", value):
            yield f"{words} is {value:.3g}, below {limits['low']:.3g}"
        elif value > limits.get("high", value):
            yield f"{words} is {value:.3g}, above {limits['high']:.3g}"


def _small(metric: str, title: str) -> PageChart:
    return PageChart(id=f"chart-{metric}", title=title, lines=(ChartLine(metric),), small=True)


LEARNING_SECTION: Final = PageSection(
    id="learning",
    title="Is it still learning?",
    before="rejected",
    charts=(
        PageChart(
            id="chart-loss",
            title="Loss",
            lines=(ChartLine("loss", "loss"),),
            note="nothing learned above this line",
        ),
        PageChart(
            id="chart-prototypes",
            title="Prototypes in use",
            lines=(
                ChartLine("prototype_usage_ratio", "evenness of use"),
                ChartLine("prototypes_dead_ratio", "dead"),
            ),
            percent=True,
        ),
        _small("effective_rank", "Effective rank"),
        _small("feature_std", "Spread of features"),
        _small("assignment_entropy_nats", "Entropy of assignments"),
        _small("gradient_norm", "Gradient norm"),
        _small("queue_drift", "Drift of the queue"),
        _small("queue_age_steps", "Age of the queue, steps"),
        _small("queue_fill_ratio", "Filled share of the queue"),
        _small("contrast_accuracy_ratio", "Key is the best match"),
        _small("cosine", "Cosine of pairs"),
        _small("label_accuracy_ratio", "Labels predicted"),
        _small("knn_accuracy_ratio", "k-NN accuracy"),
        _small("learning_rate", "Learning rate"),
    ),
    answer=learning_answer,
)
