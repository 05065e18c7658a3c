"""Checkpoints: the whole state of a run, written at once or not at all.

A checkpoint is a folder `checkpoints/step-00001000` with `state.safetensors` (every tensor of the
method and of the optimizer), `state.json` (step, cursor, numbers) and `config.toml` (the settings
of its run, so that a copy can be scored alone). It is written under another name, flushed to disk
and then renamed: a folder with the right name is whole. No pickle.
"""

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cluster.protocol.learner import LearnerState
from shards.access import check_readable, raise_denied
from shards.errors import ConfigError, StorageFailed
from shards.file_systems import explain_storage
from shards.files import flush_path
from shards.plain_json import to_json
from shards.records import Cursor
from streamssl.errors import TrainingDiverged
from streamssl.saved_files import SavedState, parse_saved

_NAME = re.compile(r"step-(\d{8})")
_DRAFT = ".draft-"
_FORMAT = 1
# Name of a number of the run among those of the optimizer.
_SKIPPED = "skipped_steps"
# Names of buffers in checkpoints of version 0.1, and their names now.
_RENAMED = {re.compile(r"\bprobe\.pictures$"): "probe.images"}
# Buffers that checkpoints of version 0.2 lack; they keep their first value.
_ADDED = re.compile(r"(^|\.)label_of_class$")


@dataclass(slots=True)
class TrainState:
    """The state that training changes.

    `step` is the number of finished steps; `cursor` is the position in the stream after them.
    `num_skipped` of them were left out, since their numbers were not finite.
    """

    method: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    cursor: Cursor | None = None
    num_skipped: int = 0


def save(out: Path, state: LearnerState, method_name: str, keep: int, settings: str = "") -> Path:
    """Write a checkpoint atomically, and remove all but the last `keep` of them.

    `settings` is the text of the run's config.toml. Raises UserError when it cannot be written, and
    TrainingDiverged if a tensor is not finite; earlier ones stay whole.
    """
    assert state.cursor is not None, "nothing was trained yet"
    name = find_not_finite(state.tensors)
    if name is not None:
        raise TrainingDiverged(
            f"{name} holds numbers that are not finite after step {state.step}, which is not saved",
            state.step,
        )
    folder = out / "checkpoints"
    target = path_of(out, state.step)
    fields = {
        "format": _FORMAT,
        "step": state.step,
        "method": method_name,
        "cursor": state.cursor.to_json(),
        "numbers": dict(state.fields),
    }
    try:
        draft = _write_draft(folder, dict(state.tensors), fields, settings)
        if target.exists():  # the same step again, after a resume from an older one
            _remove(target)
        draft.rename(target)
        flush_path(folder)
        for old in list_checkpoints(out)[:-keep]:
            _remove(old)
    except (OSError, SafetensorError) as error:
        raise_denied(error, folder)
        cause = f"{error}; make room there"  # safetensors has no codes
        if isinstance(error, OSError):
            cause = explain_storage(error, folder)
        raise StorageFailed(
            f"the checkpoint of step {state.step} cannot be written to {folder}: {cause}, then "
            "start the same command again: it goes on from the one before it"
        ) from error
    return target


def find_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of a tensor with a number that is not finite; None if there is none."""
    floats = ((name, value) for name, value in tensors.items() if value.is_floating_point())
    return next((name for name, value in floats if not value.isfinite().all()), None)


def path_of(out: Path, step: int) -> Path:
    """Return the folder of a run's checkpoint after `step`."""
    return out / "checkpoints" / f"step-{step:08d}"


def list_checkpoints(out: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first."""
    folder = out / "checkpoints"
    try:
        return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise_denied(error, folder)
        raise


def find_settings(checkpoint: Path) -> Path:
    """Return the config.toml of a checkpoint: its own, or that of its run in an older one."""
    own = checkpoint / "config.toml"
    return own if own.exists() else checkpoint.parent.parent / "config.toml"


def read_fields(checkpoint: Path) -> dict[str, Any]:
    """Read the fields of `state.json`. Raises UserError when they cannot be read."""
    try:
        fields = parse_saved(SavedState, (checkpoint / "state.json").read_bytes())
    except (OSError, ValueError) as error:
        raise_denied(error, checkpoint)
        raise ConfigError(
            f"{checkpoint} holds no readable state.json ({error}); a checkpoint is a folder such "
            "as runs/a/checkpoints/step-00001000: name one, or remove the damaged one"
        ) from error
    if fields["format"] != _FORMAT:
        raise ConfigError(
            f"{checkpoint} has format {fields['format']}; this version reads {_FORMAT}: "
            "resume with the version that wrote it"
        )
    return fields


def check_method(checkpoint: Path, fields: Mapping[str, Any], method_name: str) -> None:
    """Raise ConfigError unless a checkpoint with these `fields` is of this method."""
    if fields["method"] != method_name:
        raise ConfigError(
            f"{checkpoint} is of method {fields['method']!r}, this run trains {method_name!r}; "
            "resume with the recipe it was started with, or give a new --out"
        )


def restore(checkpoint: Path, state: TrainState, method_name: str) -> None:
    """Fill `state`, which must be built from the same configuration, from a checkpoint.

    Raises ConfigError when it belongs to another method or to other shapes.
    """
    check_method(checkpoint, read_fields(checkpoint), method_name)
    fill(state, read(checkpoint), checkpoint)


def read(checkpoint: Path) -> LearnerState:
    """Read a whole checkpoint. Raises UserError when it cannot be read."""
    fields = read_fields(checkpoint)
    cursor = Cursor.from_json(fields["cursor"])
    numbers = {name: nan if x is None else x for name, x in fields["numbers"].items()}
    return LearnerState(fields["step"], cursor, load_tensors(checkpoint), numbers)


def take(state: TrainState) -> LearnerState:
    """Copy everything that training changes, to the CPU; `fields` are numbers by name."""
    tensors, numbers = named(state)
    # Safetensors knows neither strides nor shared memory: every tensor gets memory of its own.
    plain = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }
    return LearnerState(state.step, state.cursor, plain, numbers)


def fill(state: TrainState, taken: LearnerState, where: Path | str) -> None:
    """Replace `state` by what was taken from `where`. Raises ConfigError if it does not fit."""
    tensors = dict(taken.tensors)
    _load_module(where, state.method, _under(tensors, "method."))
    saved = _under(tensors, "optimizer.")
    _check_optimizer(where, state.optimizer, saved)
    state.optimizer.state.clear()
    numbers = dict(taken.fields)
    state.num_skipped = int(numbers.pop(_SKIPPED, 0))
    _load_optimizer(state.optimizer, saved, numbers)
    state.step, state.cursor = taken.step, taken.cursor


def load_tensors(checkpoint: Path) -> dict[str, Tensor]:
    """Load every tensor of a checkpoint by name, on the CPU. Raises UserError."""
    check_readable(checkpoint / "state.safetensors")  # safetensors calls a refused file missing
    try:
        tensors = load_file(checkpoint / "state.safetensors")
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"{checkpoint}/state.safetensors cannot be read ({error}); remove this checkpoint "
            "to go on from the one before it"
        ) from error
    return {_new_name(name): value for name, value in tensors.items()}


def load_backbone(checkpoint: Path, backbone: nn.Module) -> None:
    """Fill an encoder from a checkpoint, in which a method has it under `backbone`."""
    load_part(checkpoint, "backbone", backbone)


def load_part(checkpoint: Path, name: str, part: nn.Module) -> None:
    """Fill a module from a checkpoint, in which a method has it under `name`.

    Raises ConfigError.
    """
    _load_module(checkpoint, part, _under(load_tensors(checkpoint), f"method.{name}."))


def named(state: TrainState) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return tensors and numbers of method and optimizer by name, as in `optimizer.7.exp_avg`."""
    tensors = {f"method.{name}": value for name, value in state.method.state_dict().items()}
    # Absent in a healthy run, so that its checkpoints are those of earlier versions.
    numbers: dict[str, float] = {_SKIPPED: state.num_skipped} if state.num_skipped else {}
    for index, entries in state.optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            elif value is not None:
                numbers[f"{index}.{name}"] = value
    return tensors, numbers


def _load_module(where: Path | str, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    own = module.state_dict()
    tensors = {name: value for name, value in own.items() if _ADDED.search(name)} | tensors
    expected = {name: tuple(value.shape) for name, value in own.items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    wrong = sorted(name for name in expected | found if expected.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise ConfigError(
            f"{where} does not fit this model: {name} is {found.get(name, 'absent')} there "
            f"and {expected.get(name, 'absent')} here ({len(wrong)} such); resume with the "
            "settings it was started with, or give a new --out"
        )
    module.load_state_dict(tensors)


def _check_optimizer(
    where: Path | str, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for full_name, value in tensors.items():
        index = int(full_name.split(".", 1)[0])
        fits = index < len(parameters) and value.shape in (parameters[index].shape, ())
        if not fits:
            raise ConfigError(
                f"{where} does not fit this optimizer: {full_name} is {tuple(value.shape)} "
                f"there, and there are {len(parameters)} parameters here; resume with the "
                "settings it was started with, or give a new --out"
            )


def _load_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], numbers: dict[str, float]
) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for full_name, value in tensors.items():
        index, name = full_name.split(".", 1)
        parameter = parameters[int(index)]
        if value.shape == parameter.shape:
            # The strides of the parameter: sums over it then run in the same order as before.
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        # Counts of steps have no dimension; a fused optimizer needs them on the device.
        at_home = parameter.device if optimizer.defaults.get("fused") else value.device
        optimizer.state[parameter][name] = value.to(at_home)
    for full_name, number in numbers.items():
        index, name = full_name.split(".", 1)
        optimizer.state[parameters[int(index)]][name] = number


def _new_name(name: str) -> str:
    for old, new in _RENAMED.items():
        name = old.sub(new, name)
    return name


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _write_draft(
    folder: Path, tensors: dict[str, Tensor], fields: dict[str, Any], settings: str
) -> Path:
    """Write a whole checkpoint under the name of a draft, and flush it to disk."""
    for left_behind in folder.glob(f"{_DRAFT}*"):  # by a process that was killed
        shutil.rmtree(left_behind)
    draft = folder / f"{_DRAFT}{os.getpid()}"
    draft.mkdir(parents=True)
    try:
        (draft / "state.json").write_text(to_json(fields, indent=1))
        if settings:
            (draft / "config.toml").write_bytes(settings.encode())
        save_file(tensors, draft / "state.safetensors")
        # Safetensors creates files that only their owner can read, whatever the umask is.
        shutil.copymode(draft / "state.json", draft / "state.safetensors")
        for path in (*draft.iterdir(), draft):
            flush_path(path)
    except (OSError, SafetensorError):
        shutil.rmtree(draft, ignore_errors=True)  # a full disk needs its room
        raise
    return draft


def _remove(checkpoint: Path) -> None:
    """Delete a checkpoint. A kill in between leaves a draft, never half a checkpoint."""
    draft = checkpoint.with_name(f"{_DRAFT}{checkpoint.name}")
    checkpoint.rename(draft)
    shutil.rmtree(draft)
