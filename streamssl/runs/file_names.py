"""Names of files and folders within the folder of a run."""

from typing import Final

JOURNAL: Final = "journal.jsonl"
MANIFEST: Final = "manifest.parquet"
# State of the control plane of a run on a cluster.
CONTROL: Final = ".control"
# Address and token of a live run, for commands of its user.
ACCESS: Final = ".access"
# Address at which a live run serves /metrics.
METRICS_ADDRESS: Final = ".metrics"
