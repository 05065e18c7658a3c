"""Names of files and folders within the folder of a run."""

from typing import Final

JOURNAL: Final = "journal.jsonl"
MANIFEST: Final = "manifest.parquet"
# How the last start of the run ended.
END: Final = "end.json"
# State of the control plane of a run on a cluster.
CONTROL: Final = ".control"
# Address and token of a live run, for commands of its user.
ACCESS: Final = ".access"
# Address at which a live run serves /metrics.
METRICS_ADDRESS: Final = ".metrics"
# Newest step that was not finite, and the start that came to it.
DIVERGED: Final = "diverged.json"
# Checkpoints from which the run went on with other settings.
BRANCHES: Final = "branches.jsonl"
# Folders with what was trained after such a checkpoint before; a number follows.
ABANDONED: Final = "abandoned-"
# Totals of /metrics over all starts of the run.
TOTALS: Final = "totals.json"
