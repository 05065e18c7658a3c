"""TensorBoard log: the steps of a run as event files. Needs the extra `tensorboard`."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shards.errors import ConfigError
from shards.file_systems import explain_storage

_log = logging.getLogger(__name__)


class TensorBoardLog:
    """Appends scalars to a new event file in `folder`. A step is on disk when `write` returns.

    The files are a copy of the log: if they cannot be written, a warning says so, and they end.
    """

    def __init__(self, folder: Path) -> None:
        # Optional, and slow to import: only a run with --tensorboard pays for it.
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        self._writer: Any = None
        with self._ending_on_failure():
            self._writer = SummaryWriter(str(folder))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write the scalars of a step by tag."""
        if self._writer is None:
            return
        with self._ending_on_failure():
            for tag, value in scalars.items():
                self._writer.add_scalar(tag, value, step)
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            with self._ending_on_failure():
                self._writer.close()

    @contextmanager
    def _ending_on_failure(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._writer = None
            _log.warning(
                "%s cannot be written: %s; the run goes on without files for TensorBoard",
                self._folder,
                explain_storage(error, self._folder),
            )


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
