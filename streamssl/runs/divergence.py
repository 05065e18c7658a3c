"""Divergence: the mark of a step that was not finite, and the sentence about it.

The same start from the same checkpoint comes to the same numbers, unless a device failed. It is
tried twice, then refused.
"""

from contextlib import suppress
from dataclasses import asdict, dataclass
from dataclasses import fields as dataclass_fields
from hashlib import blake2b
from pathlib import Path
from typing import Self

from rich.console import Console

from shards.errors import ConfigError
from shards.files import write_atomic
from shards.plain_json import to_json
from streamssl import checkpoint
from streamssl.config.run_config import RunConfig, toml_of
from streamssl.errors import TrainingDiverged
from streamssl.runs.file_names import DIVERGED
from streamssl.saved_files import SavedDivergence, parse_saved

_MAX_STARTS = 2


@dataclass(frozen=True, slots=True)
class DivergenceMark:
    """The file `diverged.json`: starts from one checkpoint, "" for none, that ended at a step.

    `settings` is the digest of their settings, `found` says in words what was not finite. If the
    step `can_skip`, a budget would have left it out.
    """

    settings: str
    checkpoint: str
    step: int
    found: str
    can_skip: bool
    num_starts: int

    @classmethod
    def read(cls, out: Path) -> Self | None:
        """Return the mark of a run; None if there is none, or a damaged one."""
        try:
            fields = parse_saved(SavedDivergence, (out / DIVERGED).read_bytes())
        except (OSError, ValueError):
            return None
        return cls(**{field.name: fields[field.name] for field in dataclass_fields(cls)})

    def write(self, out: Path) -> None:
        """Replace the mark of a run. Raises OSError."""
        write_atomic(out / DIVERGED, to_json(asdict(self), indent=1))


def explain(error: TrainingDiverged, config: RunConfig, out: Path) -> TrainingDiverged:
    """Mark the run in `out` as diverged, and return the error with the remedy."""
    names = ["", *(found.name for found in checkpoint.list_checkpoints(out))]
    settings, before = _digest(config), DivergenceMark.read(out)
    num_starts, place = 1, -1
    if before is not None and before.checkpoint == names[-1]:
        if before.settings == settings:
            num_starts += before.num_starts
        elif len(names) > 2:  # other settings did not help from there
            place = -2
    with suppress(OSError):  # a full disk, or a folder that is gone: the error matters more
        mark = DivergenceMark(
            settings, names[-1], error.step, str(error), error.can_skip, num_starts
        )
        mark.write(out)
    remedy = _remedy(config, names[place], error.can_skip)
    return TrainingDiverged(f"{error}; {remedy}", error.step, error.can_skip)


def check_divergence(config: RunConfig, out: Path, newest: Path | None, console: Console) -> None:
    """Say that the last start ended at a step that was not finite; refuse the third of this kind.

    Raises ConfigError.
    """
    name = "" if newest is None else newest.name
    mark = DivergenceMark.read(out)
    if mark is None or (mark.settings, mark.checkpoint) != (_digest(config), name):
        return
    place = f"from {name}" if name else "from step 0"
    if mark.num_starts >= _MAX_STARTS:
        raise ConfigError(
            f"{mark.num_starts} starts {place} with these settings ended at step {mark.step}: "
            f"{mark.found}; another one would end there again: "
            f"{_remedy(config, name, mark.can_skip)}"
        )
    console.print(
        f"the last start {place} ended at step {mark.step}: {mark.found}; this one tries the same "
        "steps once more",
        highlight=False,
        markup=False,
    )


def _remedy(config: RunConfig, name: str, can_skip: bool) -> str:
    rate = f"--optim.base-lr {config.optim.base_lr / 2:g}"
    leave_out = ""
    if can_skip:
        number = config.max_skipped_steps + 10
        leave_out = f", or --max-skipped-steps {number} to leave such steps out"
    if not name:
        return (
            f"nothing was saved before it: add {rate} to the same command, which starts again at "
            f"half the rate{leave_out}"
        )
    return (
        f"{name} is finite: add --from {name} {rate} to the same command, which goes on from there "
        f"at half the rate{leave_out} (with --from, --schedule.…, weight decay, betas, "
        "--precision, temperature and epsilon may change, too)"
    )


def _digest(config: RunConfig) -> str:
    return blake2b(toml_of(config).encode(), digest_size=16).hexdigest()
