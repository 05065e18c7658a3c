"""The catalogue: every metric of a run, once. Whatever names one takes the name from here.

`docs/metrics.md` is made of it, and collectors, rules, dashboards and the live page are held
against it. Counters rise for as long as the command runs, whoever comes and goes. A gauge that
was never measured is absent, and never 0.
"""

from collections.abc import Mapping
from typing import get_args

from cluster.actors.autoscaler import Reason as ScalingReason
from cluster.actors.restart_policy import Cause
from cluster.protocol.lease_counters import Late, Loss
from cluster.protocol.metric import Group, Metric
from shards.records import Reason as RejectReason
from shards.stores.retry import Kind as Trouble

_STEP_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
_ROLES = ("reader", "trainer", "control", "driver")
_WORKERS = ("reader", "trainer")
PHASES = (
    "input_wait", "copy", "forward_backward", "collectives", "optimizer", "checkpoint"
)  # fmt: skip


def _counter(group: Group, name: str, help: str, how: str, /, **labels: tuple[str, ...]) -> Metric:
    return Metric(name=name, kind="counter", group=group, help=help, how=how, labels=labels)


def _gauge(group: Group, name: str, help: str, how: str, /, **labels: tuple[str, ...]) -> Metric:
    return Metric(name=name, kind="gauge", group=group, help=help, how=how, labels=labels)


_INPUT = (
    _counter("input", "bucket_bytes", "Bytes that came from a bucket.",
             "Its rate is the network that the run needs; compare it with what the nodes have.",
             bucket=()),
    _counter("input", "bucket_requests", "Requests to a bucket, those made again included.",
             "Many requests for few bytes: the chunks are small, see --stream.chunk-bytes.",
             bucket=()),
    _counter("input", "bucket_request_seconds", "Seconds that requests to a bucket took.",
             "Divided by the requests: the mean latency. It rises when a bucket is the limit.",
             bucket=()),
    _counter("input", "bucket_errors", "Requests to a bucket that failed, by kind of trouble.",
             "Each was made again; `throttled` means that the bucket asks for fewer.",
             bucket=(), kind=get_args(Trouble)),
    _counter("input", "cache_ranges", "Ranges that were looked up in the disk cache of --cache.",
             "Hits over both is the share that the bucket was not asked for.",
             kind=("hit", "miss")),
    _counter("input", "samples", "Samples that passed a stage.",
             "`read` over all, `unselected` by a list, `cropped` as kept, `trained` in a step.",
             stage=("read", "unselected", "cropped", "trained")),
    _counter("input", "rejects", "Samples that were rejected, by reason, as the stream meets them.",
             "Over read samples it is the share of bad data; a new reason is a new kind of data.",
             reason=get_args(RejectReason)),
    _counter("input", "reader_busy_seconds", "Seconds that readers spent on a stage, all together.",
             "On a cluster both stages go on at once; samples over `crop` is a reader's speed.",
             stage=("read", "crop")),
    _counter("input", "reader_blocked_seconds", "Seconds that readers waited, by what for.",
             "`lease`: nobody needs more crops. `bucket`: the bytes do not come quickly enough.",
             on=("lease", "bucket")),
    _counter("input", "crop_bytes", "Bytes of crops that readers made.",
             "Its rate is what must travel from readers to trainers."),
    _counter("input", "taken_bytes", "Bytes of crops that trainers took from readers.",
             "Beyond `crop_bytes` only where rows were asked for twice."),
    _counter("input", "data_wait_seconds", "Seconds that the trainer waited for a batch.",
             "Its rate is the share of time that is lost to the input: below 0.05 is good."),
    _gauge("input", "batches_ready", "Batches that are whole and wait to be trained on.",
           "`planned`: their crops lie in readers. `taken`: they lie with the trainer.",
           stage=("planned", "taken")),
    _gauge("input", "lead_seconds", "Seconds of training for which batches are ready.",
           "Batches ready times the seconds of a step: how long a stall of the input goes unseen."),
    _gauge("input", "oldest_lease_seconds", "Age of the oldest lease that was not finished.",
           "Grows without end when a chunk hangs; a reader loses it at its deadline."),
    _gauge("input", "buffer_bytes", "Bytes of crops and images in memory, by role.",
           "Full buffers of readers: the trainer is the limit. Empty ones: the readers are.",
           role=_WORKERS),
    _gauge("input", "buffer_limit_bytes", "Bytes that may be held in memory, by role.",
           "What --stream.max-bytes allows.",
           role=_WORKERS),
)  # fmt: skip

_TRAINING = (
    Metric(name="step_seconds", kind="histogram", group="training", buckets=_STEP_BUCKETS,
           help="Seconds of a training step, the wait for its batch not included.",
           how="The mean, sum over count, is what a step costs when data is there."),
    _counter("training", "step_phase_seconds", "Seconds of training, by what was done in them.",
             "`collectives` are gradients and the last exchange; what a method shares while it "
             "computes its loss is in `forward_backward`.",
             phase=PHASES),
    _gauge("training", "train_step", "The newest finished step.",
           "Does not rise: look at `world_size`, `lead_seconds` and the rejects."),
    _gauge("training", "steps_wanted", "The step at which the run is done.",
           "With the rate of `train_step` it tells when."),
    _gauge("training", "model_flops_utilization_ratio",
           "Floating point operations of a step over what the devices could do in its time.",
           "Only on GPUs whose peak is known. Waits count: it is the share of money well spent."),
    _gauge("training", "memory_bytes", "Resident memory of the largest process of a role.",
           "A role that grows from hour to hour leaks; Ray kills processes on full nodes.",
           role=_ROLES),
    _gauge("training", "device_memory_bytes", "Memory of the fullest GPU of a trainer.",
           "`peak` is the most that was allocated, `reserved` what torch holds, `limit` all of it.",
           what=("allocated", "peak", "reserved", "limit")),
    _gauge("training", "disk_free_bytes", "Free bytes of the disk below a folder.",
           "`out` is the run folder, `cache` that of --cache on this machine.",
           what=("out", "cache")),
    _gauge("training", "disk_size_bytes", "All bytes of the disk below a folder.",
           "For the share that is free.",
           what=("out", "cache")),
)  # fmt: skip

_LEARNING = (
    _gauge("learning", "loss", "Loss of the newest step.",
           "Compare it with its plateau: ln K for SwAV, ln (1 + queue) for MoCo."),
    _gauge("learning", "learning_rate", "Learning rate of the newest step.",
           "As the schedule says."),
    _gauge("learning", "gradient_norm", "Norm of the gradient of the newest step, over all ranks.",
           "Spikes before the loss does; falls to 0 when the features have collapsed."),
    _gauge("learning", "queue_fill_ratio", "Share of the feature queue that is filled.",
           "1 once the queue has seen as many samples as it holds."),
    _gauge("learning", "queue_age_steps", "Age of the features in the queue, in steps.",
           "`max` is queue length over batch: old features are of an older network.",
           what=("p50", "max")),
    _gauge("learning", "queue_drift", "How far the oldest queued features are from those of today.",
           "1 - cosine of 16 images' features, then and now, 0 to 2; over 0.5 they are stale."),
    _gauge("learning", "prototype_usage_ratio", "Perplexity of the mean code over the prototypes.",
           "1: all are used alike. Towards 1/K: everything falls to one."),
    _gauge("learning", "prototypes_dead_ratio", "Share of prototypes that nobody chose lately.",
           "Over 0.5 late in training: ask for fewer prototypes."),
    _gauge("learning", "assignment_entropy_nats", "Mean entropy of a sample's code, in nats.",
           "ln K: no opinion. Near 0 at the start: the temperature is too low."),
    _gauge("learning", "effective_rank", "Dimensions that the features use (RankMe).",
           "Falls towards 1 when the features collapse; more is better up to the feature's size."),
    _gauge("learning", "feature_std", "Standard deviation of a dimension of unit-norm features.",
           "Times the root of their number: 1 when they are spread evenly, 0 when all are alike."),
    _gauge("learning", "loss_over_plateau_ratio",
           "Loss over what it is where features tell nothing about their images.",
           "1: nothing is learned yet, or not any more. Of methods for which that is known."),
    _gauge("learning", "assignment_certainty_ratio",
           "By how much less than ln K the entropy of a code is, as a share of ln K.",
           "0: every prototype suits an image as well as any other."),
    _gauge("learning", "assignments_used", "Perplexity of the labels that a method gave itself.",
           "So many clusters, were they of one size; 1: all images are in one."),
    _gauge("learning", "collapsing", "1 while a reading is where only collapsed encoders have it.",
           "Any 1 for more than a moment: stop, and change what the runbook says.",
           reading=("feature_std", "effective_rank", "loss_over_plateau", "codes_certainty",
                    "assignments_used")),
    _gauge("learning", "contrast_accuracy_ratio", "Share of samples whose key is the best match.",
           "1 from the start: the task is too easy, look at the crops."),
    _gauge("learning", "cosine", "Mean cosine of pairs of features, by kind of pair.",
           "`positive` and `target` rise, `negative` stays near 0; all near 1 is collapse.",
           kind=("positive", "negative", "target")),
    _gauge("learning", "label_accuracy_ratio", "Share of samples whose label was predicted.",
           "Of methods with labels or pseudo-labels."),
    _gauge("learning", "memory_fill_ratio", "Share of a method's memory of samples that is filled.",
           "Methods with a memory learn once it is full."),
    _gauge("learning", "momentum", "Share that the momentum encoder keeps of itself in a step.",
           "As its schedule says."),
    _gauge("learning", "knn_accuracy_ratio", "k-NN accuracy of the checkpoint scored last.",
           "Of `streamssl evaluate knn --follow`; the one number that compares methods."),
)  # fmt: skip

_CLUSTER = (
    _gauge("cluster", "control_term", "How many Controls the run has had.",
           "Rises by one whenever Control died: look at the memory of the head."),
    _gauge("cluster", "world_size", "Trainers that share a batch at this moment.",
           "0: nobody trains, a generation is being formed."),
    _gauge("cluster", "actors", "Actors that answer, by role.",
           "Below `actors_wanted` for minutes: nodes or memory are missing.",
           role=_WORKERS),
    _gauge("cluster", "actors_wanted", "Actors that there shall be, by role.",
           "What was asked for, or what the scaler decided.",
           role=_WORKERS),
    _gauge("cluster", "pool_ready", "Actors that answer, by role and pool of nodes.",
           "Which pool really works for the run.",
           role=_WORKERS, pool=()),
    _gauge("cluster", "pool_desired", "Actors that a pool of nodes shall give, by role.",
           "All of a role where new ones are asked for, what is still there elsewhere.",
           role=_WORKERS, pool=()),
    _gauge("cluster", "nodes", "Nodes that are alive, by whether they stay.",
           "`leaving` ones were told that they will be taken away.",
           kind=("staying", "leaving", "pending")),
    _counter("cluster", "node_launches_failed", "Launches of nodes that came to nothing.",
             "The provider has none left, or a quota is used up."),
    _gauge("cluster", "object_store_used_ratio", "Used share of the fullest node's object store.",
           "From 0.8 on Ray writes crops to disk: lower --stream.max-bytes."),
    _counter("cluster", "scale_decisions", "Changes of how many readers there shall be.",
             "`no gain`: the bucket or the network is the limit, more readers would not help.",
             direction=("up", "down", "pool"), reason=get_args(ScalingReason)),
    _counter("cluster", "restarts", "Actors that ended against our will, by cause.",
             "`preemption` and `node` are the cluster's affair, `failure` is ours to look at.",
             role=_WORKERS, reason=tuple(one for one in get_args(Cause) if one != "let go")),
    _counter("cluster", "readers_lost", "Readers that died or hung.",
             "Each was replaced, and its chunks were given to others."),
    _counter("cluster", "trainers_lost", "Trainers that died, hung or were taken away.",
             "Each cost a step at most."),
    _counter("cluster", "leases_reissued", "Chunks that were given to another reader, and why.",
             "`hung` and `silent` without deaths: readers are too slow for their deadlines.",
             reason=(*get_args(Loss), "returned")),
    _counter("cluster", "results_refused", "Results of leases that held no more, and why.",
             "Fenced words of readers that were given up; none of them counts.",
             reason=get_args(Late)),
    _counter("cluster", "beats_refused", "Words of trainers that were refused, and why.",
             "Fenced commits: what a trainer that was given up still says.",
             reason=("gone", "term", "generation", "late")),
    _counter("cluster", "generations", "Groups of trainers that were formed.",
             "One for each change of who trains."),
    _counter("cluster", "recoveries", "Losses of trainers after which a step was finished again.",
             "With `recovery_seconds`: what a loss costs."),
    _counter("cluster", "recovery_seconds", "Seconds from those losses to the next finished step.",
             "Over `recoveries`: about two seconds each."),
    _counter("cluster", "state_mismatches", "Comparisons in which ranks held different states.",
             "Never: a run ends at the first one, since its numbers would mean nothing."),
    _counter("cluster", "node_cost_dollars", "Price of the nodes of a pool, by --price.",
             "Sum over pools; its rate times 3600 is dollars an hour.",
             pool=()),
)  # fmt: skip

METRICS: tuple[Metric, ...] = (*_INPUT, *_TRAINING, *_LEARNING, *_CLUSTER)
CATALOGUE: Mapping[str, Metric] = {metric.name: metric for metric in METRICS}
