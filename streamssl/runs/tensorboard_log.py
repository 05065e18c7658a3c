"""TensorBoard log: the steps of a run as event files. Needs the extra `tensorboard`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shards.errors import ConfigError


class TensorBoardLog:
    """Appends scalars to a new event file in `folder`. A step is on disk when `write` returns."""

    def __init__(self, folder: Path) -> None:
        # Optional, and slow to import: only a run with --tensorboard pays for it.
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write the scalars of a step by tag."""
        for tag, value in scalars.items():
            self._writer.add_scalar(tag, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def check_tensorboard() -> None:
    """Raise ConfigError if the library that writes event files is not installed."""
    try:
        import tensorboard  # noqa: F401 # optional
    except ImportError as error:
        raise ConfigError(
            f"--tensorboard needs the library tensorboard ({error}); run "
            "`pip install 'streamssl[tensorboard]'`, or leave the option out"
        ) from error


def step_scalars(fields: Mapping[str, Any]) -> dict[str, float]:
    """Return the scalars of a line of metrics.jsonl by tag."""
    seconds = fields["step_seconds"] + fields["data_wait_seconds"]
    return {
        "loss": fields["loss"],
        "learning_rate": fields["lr"],
        "images_per_second": fields["num_samples"] / seconds if seconds else 0.0,
        "data_wait_share": fields["data_wait_seconds"] / seconds if seconds else 0.0,
        "rejects": fields["num_rejects"],
        **{f"readings/{name}": value for name, value in fields["readings"].items()},
    }
