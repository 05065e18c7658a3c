"""Metrics of learning: the rows that only methods and evaluation give numbers for."""

from dataclasses import replace
from typing import Final

from shards.metric import MetricGroup, charted

_training = MetricGroup("training")
_learning = MetricGroup("learning")

# Gauges that are NaN on /metrics when they are not finite: that must be seen.
_SHOW_NAN: Final = ("loss", "gradient_norm")

_METRICS: Final = charted((
    _training.gauge("model_flops_utilization_ratio",
                    "Floating point operations of a step divided by what the devices can do in "
                    "its time.",
                    "Only on GPUs with a known peak. Waits count: it is the share of money well "
                    "spent. --recompute and --micro-batches count what they compute twice."),
    _learning.gauge("loss", "Loss of the newest step.",
                    "Compare it with its plateau: ln K for SwAV, ln (1 + queue) for MoCo."),
    _learning.gauge("learning_rate", "Learning rate of the newest step.",
                    "Follows the schedule."),
    _learning.gauge("gradient_norm", "Norm of the gradient of the newest step, over all ranks.",
                    "Spikes before the loss does; falls to 0 when the features have collapsed."),
    _learning.gauge("skipped_steps",
                    "Steps that were left out since their numbers were not finite.",
                    "0 in a healthy run. `--max-skipped-steps` is the limit; a smaller learning "
                    "rate is the remedy."),
    _learning.gauge("queue_fill_ratio", "Share of the feature queue that is filled.",
                    "1 once the queue has seen as many samples as it holds."),
    _learning.gauge("queue_age_steps", "Age of the features in the queue, in steps.",
                    "`max` is queue length over batch: old features are of an older network.",
                    what=("p50", "max")),
    _learning.gauge("queue_drift", "Distance of the oldest queued features from today's.",
                    "1 - cosine of the features of 16 images, then and now, 0 to 2; over 0.5 they "
                    "are stale."),
    _learning.gauge("prototype_usage_ratio", "Perplexity of the mean code over the prototypes.",
                    "1: all are used equally. Towards 1/K: all samples fall to one."),
    _learning.gauge("prototypes_dead_ratio", "Share of prototypes without a recent assignment.",
                    "Over 0.5 late in training: use fewer prototypes."),
    _learning.gauge("assignment_entropy_nats", "Mean entropy of a sample's code, in nats.",
                    "ln K: no preference. Near 0 at the start: the temperature is too low."),
    _learning.gauge("effective_rank", "Number of dimensions that the features use (RankMe).",
                    "Falls towards 1 when the features collapse; more is better up to the "
                    "feature's size."),
    _learning.gauge("feature_std", "Standard deviation of a dimension of unit-norm features.",
                    "Times the root of their number: 1 when spread evenly, 0 when all are equal."),
    _learning.gauge("loss_over_plateau_ratio",
                    "Loss divided by its value for features that carry no information.",
                    "1: nothing is learned yet, or no longer. For methods with a known plateau."),
    _learning.gauge("assignment_certainty_ratio",
                    "Difference of ln K and the entropy of a code, as a share of ln K.",
                    "0: every prototype suits an image as well as any other."),
    _learning.gauge("assignments_used", "Perplexity of the labels that a method assigned.",
                    "Number of clusters if all had one size; 1: all images are in one."),
    _learning.gauge("collapsing",
                    "1 while a reading has a value that only collapsed encoders have.",
                    "1 for more than a moment: stop, and change the setting that the runbook "
                    "names.",
                    reading=("feature_std", "effective_rank", "loss_over_plateau",
                             "codes_certainty", "assignments_used")),
    _learning.gauge("contrast_accuracy_ratio", "Share of samples whose key is the best match.",
                    "1 from the start: the task is too easy, check the crops."),
    _learning.gauge("cosine", "Mean cosine of pairs of features, by kind of pair.",
                    "`positive` and `target` rise, `negative` stays near 0; all near 1 is "
                    "collapse.",
                    kind=("positive", "negative", "target")),
    _learning.gauge("label_accuracy_ratio", "Share of samples with a correctly predicted label.",
                    "For methods with labels or pseudo-labels."),
    _learning.gauge("memory_fill_ratio", "Share of the sample memory that is filled.",
                    "Methods with a memory learn once it is full."),
    _learning.gauge("momentum", "Momentum of the momentum encoder in the newest step.",
                    "Follows its schedule."),
    _learning.gauge("knn_accuracy_ratio", "k-NN accuracy of the checkpoint scored last.",
                    "From `streamssl evaluate knn --follow`; the one number that compares "
                    "methods."),
), "model_flops_utilization_ratio loss learning_rate gradient_norm queue_fill_ratio "
   "queue_age_steps queue_drift prototype_usage_ratio prototypes_dead_ratio "
   "assignment_entropy_nats loss_over_plateau_ratio collapsing effective_rank feature_std "
   "contrast_accuracy_ratio cosine label_accuracy_ratio knn_accuracy_ratio")  # fmt: skip

LEARNING_METRICS: Final = tuple(
    replace(metric, shows_nan=metric.name in _SHOW_NAN) for metric in _METRICS
)
