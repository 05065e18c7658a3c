"""Names that moved to `shards.metric` and `cluster.protocol.process_counts`."""

from cluster.protocol.process_counts import PROCESS_PREFIX as PROCESS_PREFIX
from cluster.protocol.process_counts import ProcessCounts as Counted
from shards.metric import MAX_OPEN_VALUES as MAX_OPEN_VALUES
from shards.metric import OTHER as OTHER
from shards.metric import PREFIX as PREFIX
from shards.metric import Key as Key
from shards.metric import Metric as Metric
from shards.metric import Readings as Readings

__all__ = ["Counted"]
