"""Metric catalogue: the rows of the control plane, and the table of all rows of a run.

`streamssl` composes the table from the rows of all planes. Collectors, `docs/metrics.md`, rules,
dashboards and the live page take metric names from it. A counter rises as long as the run lasts,
even when its processes are replaced or its command is given again. A gauge that was never measured
is absent, never 0.
"""

from collections.abc import Mapping
from typing import Final, get_args

from cluster.actors.autoscaler import Reason as ScalingReason
from cluster.actors.restart_policy import Cause
from cluster.protocol.lease_counters import Late, Loss
from shards.metric import Metric, MetricGroup, charted

_STEP_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
_ROLES = ("reader", "trainer", "control", "driver")
_WORKERS = ("reader", "trainer")
PHASES: Final = (
    "input_wait", "copy", "forward_backward", "collectives", "optimizer", "checkpoint"
)  # fmt: skip

MetricCatalogue = Mapping[str, Metric]
"""Metrics of a run by name, without prefix and suffix."""


def build_catalogue(*planes: tuple[Metric, ...]) -> MetricCatalogue:
    """Return the catalogue of these rows."""
    rows = [metric for plane in planes for metric in plane]
    catalogue = {metric.name: metric for metric in rows}
    assert len(catalogue) == len(rows), "two metrics have one name"
    return catalogue


_input = MetricGroup("input")
_FEED = (
    _input.counter("reader_busy_seconds", "Seconds that all readers spent on a stage.",
                   "On a cluster both stages overlap; samples divided by `crop` is a reader's "
                   "speed.",
                   stage=("read", "crop")),
    _input.counter("reader_blocked_seconds", "Seconds that readers waited, by reason.",
                   "`lease`: no more crops are needed. `bucket`: bytes arrive too slowly.",
                   on=("lease", "bucket")),
    _input.counter("taken_bytes", "Bytes of crops that trainers took from readers.",
                   "Larger than `crop_bytes` only if rows were requested twice."),
    _input.counter("data_wait_seconds", "Seconds that the trainer waited for a batch.",
                   "Its rate is the share of time lost to the input: below 0.05 is good."),
    _input.gauge("batches_ready", "Complete batches that wait to be trained on.",
                 "`planned`: their crops are in readers. `taken`: they are in the trainer.",
                 stage=("planned", "taken")),
    _input.gauge("lead_seconds", "Seconds of training for which batches are ready.",
                 "Ready batches times seconds per step: how long the input may stall unnoticed."),
    _input.gauge("oldest_lease_seconds", "Age of the oldest unfinished lease.",
                 "Grows when a chunk hangs; at its deadline the reader loses the lease."),
    _input.gauge("buffer_bytes", "Bytes of crops and images in memory, by role.",
                 "Full buffers of readers: the trainer is the limit. Empty ones: readers are.",
                 role=_WORKERS),
    _input.gauge("buffer_limit_bytes", "Maximum of `buffer_bytes`, by role.",
                 "Set by --stream.max-bytes.",
                 role=_WORKERS),
)  # fmt: skip

_training = MetricGroup("training")
_STEPS = (
    Metric(name="step_seconds", kind="histogram", group="training", buckets=_STEP_BUCKETS,
           help="Seconds of a training step, without the wait for its batch.",
           how="The mean, sum over count, is the cost of a step when data is ready."),
    _training.counter("step_phase_seconds", "Seconds of training by phase of the step.",
                      "`collectives` are gradients and the final exchange; communication of a "
                      "method inside its loss counts as `forward_backward`.",
                      phase=PHASES),
    _training.gauge("train_step", "The newest finished step.",
                    "Does not rise: check `world_size`, `lead_seconds` and the rejects."),
    _training.gauge("steps_wanted", "The step at which the run is done.",
                    "With the rate of `train_step` it gives the time left."),
    _training.gauge("memory_bytes", "Resident memory of the largest process of a role.",
                    "A role that grows from hour to hour leaks; Ray kills processes on full nodes.",
                    role=_ROLES),
    _training.gauge("device_memory_bytes", "Memory of the fullest GPU of a trainer.",
                    "`peak` is the maximum allocated, `reserved` is held by torch, `limit` is the "
                    "total.",
                    what=("allocated", "peak", "reserved", "limit")),
    _training.gauge("disk_free_bytes", "Free bytes of the disk of a folder.",
                    "`out` is the run folder, `cache` that of --cache on this machine.",
                    what=("out", "cache")),
    _training.gauge("disk_size_bytes", "Size in bytes of the disk of a folder.",
                    "For the share that is free.",
                    what=("out", "cache")),
)  # fmt: skip

_cluster = MetricGroup("cluster")
_ACTORS = (
    _cluster.gauge("control_term", "Number of Controls that the run has had.",
                   "Rises by one whenever Control dies: check the memory of the head node."),
    _cluster.gauge("world_size", "Trainers that share a batch at this moment.",
                   "0: no trainer trains, a generation is being formed."),
    _cluster.gauge("actors", "Actors that answer, by role.",
                   "Below `actors_wanted` for minutes: nodes or memory are missing.",
                   role=_WORKERS),
    _cluster.gauge("actors_wanted", "Wanted number of actors, by role.",
                   "Set by the user, or decided by the autoscaler.",
                   role=_WORKERS),
    _cluster.gauge("pool_ready", "Actors that answer, by role and pool of nodes.",
                   "Shows which pool works for the run.",
                   role=_WORKERS, pool=()),
    _cluster.gauge("pool_desired", "Actors that a pool of nodes must run, by role.",
                   "The pool for new actors: all that are missing. Other pools: those that run.",
                   role=_WORKERS, pool=()),
    _cluster.gauge("nodes", "Nodes that are alive or requested, by state.",
                   "`leaving` nodes were announced to be taken away.",
                   kind=("staying", "leaving", "pending")),
    _cluster.counter("node_launches_failed", "Failed launches of nodes.",
                     "The provider has no capacity, or a quota is used up."),
    _cluster.gauge("object_store_used_ratio", "Used share of the fullest node's object store.",
                   "From 0.8 on Ray writes crops to disk: lower --stream.max-bytes."),
    _cluster.counter("scale_decisions", "Changes of the wanted number of readers.",
                     "`no gain`: the bucket or the network is the limit, readers do not help.",
                     direction=("up", "down", "pool"), reason=get_args(ScalingReason)),
    _cluster.counter("restarts", "Actors that ended unexpectedly, by cause.",
                     "`preemption` and `node` come from the cluster, `failure` from the program.",
                     role=_WORKERS,
                     reason=get_args(Cause)),
    _cluster.counter("readers_lost", "Readers that died or hung.",
                     "Each was replaced, and its chunks were leased to others."),
    _cluster.counter("trainers_lost", "Trainers that died, hung or were taken away.",
                     "Each cost one step at most."),
    _cluster.counter("leases_reissued", "Chunks leased again to another reader, by cause.",
                     "`hung` and `silent` without deaths: readers are too slow for the deadlines.",
                     reason=(*get_args(Loss), "returned")),
    _cluster.counter("leases_hedged", "Second leases of slow chunks.",
                     "With `hedges_won`: the share of second leases that finished first."),
    _cluster.counter("hedges_won", "Second leases that finished before the first one.",
                     "Divided by `leases_hedged`: near 0, readers are slow together; near 1, one "
                     "is slow."),
    _cluster.counter("chunks_recropped", "Finished chunks whose crops were lost before use.",
                     "Each costs the time of a chunk; it rises when readers die."),
    _cluster.counter("chunks_given_up", "Chunks that killed too many readers.",
                     "The run ends with the name of the shard."),
    _cluster.counter("results_differing", "Late results that differ from the first one.",
                     "Must be 0: data changed during the run, or a node computes wrongly."),
    _cluster.counter("results_refused", "Refused results of invalid leases, by cause.",
                     "Late results of readers that were given up; none of them counts.",
                     reason=get_args(Late)),
    _cluster.counter("beats_refused", "Refused messages of trainers, by cause.",
                     "Fenced commits of trainers that were given up.",
                     reason=("gone", "term", "generation", "late")),
    _cluster.counter("generations", "Groups of trainers that were formed.",
                     "One for each change of the membership."),
    _cluster.counter("recoveries", "Losses of trainers after which a step was finished again.",
                     "With `recovery_seconds`: the cost of a loss."),
    _cluster.counter("recovery_seconds", "Seconds from those losses to the next finished step.",
                     "Divided by `recoveries`: about two seconds each."),
    _cluster.counter("state_mismatches", "Comparisons in which ranks held different states.",
                     "Must be 0: the run ends at the first one, because its numbers are invalid."),
    _cluster.counter("node_cost_dollars", "Price of the nodes of a pool, from --price.",
                     "Sum over pools; its rate times 3600 is dollars an hour.",
                     pool=()),
)  # fmt: skip

CLUSTER_METRICS: Final = charted(
    (*_FEED, *_STEPS, *_ACTORS),
    "data_wait_seconds reader_busy_seconds reader_blocked_seconds lead_seconds batches_ready "
    "buffer_bytes step_seconds step_phase_seconds train_step memory_bytes world_size actors "
    "actors_wanted nodes readers_lost trainers_lost node_cost_dollars",
)
