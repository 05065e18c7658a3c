"""A run, as one frozen value: what `recipes` make, the command line overrides and TOML keeps."""

import os
import tomllib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import tomli_w
import tyro
from pydantic import TypeAdapter, ValidationError

from shards.crops.recipe import CropRecipe
from shards.errors import ConfigError
from shards.samples.admission import AdmissionConfig
from shards.stream.batch_stream import StreamConfig
from streamssl.methods.byol import BYOLConfig
from streamssl.methods.deepcluster import DeepClusterConfig
from streamssl.methods.distillation import DistillationConfig
from streamssl.methods.fine_tuning import FineTuneConfig
from streamssl.methods.mochi import MoCHiConfig
from streamssl.methods.moco import MoCoConfig
from streamssl.methods.moco_v3 import MoCoV3Config
from streamssl.methods.patchmix import PatchMixConfig
from streamssl.methods.sela import SeLaConfig
from streamssl.methods.simclr import SimCLRConfig
from streamssl.methods.spcl import SpCLConfig
from streamssl.methods.supcon import SupConConfig
from streamssl.methods.swav import SwAVConfig
from streamssl.modules.backbones import BackboneConfig
from streamssl.optim.optimizers import OptimConfig
from streamssl.optim.schedules import ScheduleConfig

# A new method is a member of the union, for types and options, and a name for config.toml.
MethodConfig: TypeAlias = (
    SwAVConfig
    | MoCoConfig
    | MoCHiConfig
    | MoCoV3Config
    | BYOLConfig
    | SimCLRConfig
    | SupConConfig
    | FineTuneConfig
    | DistillationConfig
    | DeepClusterConfig
    | SeLaConfig
    | SpCLConfig
    | PatchMixConfig
)
METHODS: dict[str, type[MethodConfig]] = {
    "swav": SwAVConfig,
    "moco": MoCoConfig,
    "mochi": MoCHiConfig,
    "moco-v3": MoCoV3Config,
    "byol": BYOLConfig,
    "simclr": SimCLRConfig,
    "supcon": SupConConfig,
    "fine-tune": FineTuneConfig,
    "distillation": DistillationConfig,
    "deepcluster-v2": DeepClusterConfig,
    "sela-v2": SeLaConfig,
    "spcl": SpCLConfig,
    "patchmix": PatchMixConfig,
}

# What may change between a run and its continuation without changing what was learned so far.
_FREE_ON_RESUME = {
    *("num_steps", "save_every", "keep"),
    *("stream.max_bytes", "stream.num_lookahead_blocks"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Everything that decides what is learned, besides the data.

    A batch is `stream.batch_size` images over all ranks.
    """

    method: MethodConfig
    backbone: BackboneConfig
    crops: CropRecipe
    optim: OptimConfig
    schedule: ScheduleConfig
    stream: StreamConfig
    admission: AdmissionConfig = field(default_factory=AdmissionConfig)
    num_steps: int = 100_000
    """Optimizer steps, each of one global batch."""
    save_every: int = 1000
    """Steps between checkpoints."""
    keep: int = 3
    """How many checkpoints stay."""
    seed: int = 0
    """Decides weights, order and crops."""
    engine: Literal["opencv", "dali-cpu", "dali-gpu"] = "opencv"
    """What makes the crops: opencv anywhere; dali-gpu on the trainer's GPU; dali-cpu to compare."""
    label: str = ""
    """A sample's label, for methods that learn from it: a member such as cls, or a JSON field."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """bf16 is autocast; Sinkhorn and normalisation stay float32."""
    sizes: Literal["given", "auto"] = "given"
    """auto: prototypes, queue, memory, epsilon, frozen steps and learning rate follow from the
    batch and the data, those aside that are given by hand; given: as the recipe has them."""
    origins: Annotated[dict[str, str], tyro.conf.Suppress] = field(default_factory=dict)
    """Where sizes that were worked out come from, by name."""

    def __post_init__(self) -> None:
        for name in ("num_steps", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}; it must be at least 1")
        source_classes = getattr(self.method, "source_classes", 0)
        takes_labels = isinstance(self.method, SupConConfig | FineTuneConfig) or source_classes
        if self.label and not takes_labels:
            raise ConfigError(
                f"label={self.label!r} with method {self.method_name}; only supcon, fine-tune and "
                "spcl with source_classes learn from labels: remove the setting"
            )
        if source_classes and not self.label:
            raise ConfigError(
                f"source_classes={source_classes} and no label; the classes of the source are told "
                "by one: give --label, a member such as cls or a field of the samples' JSON"
            )
        if isinstance(self.method, FineTuneConfig) and not self.label:
            raise ConfigError(
                "label='' with method fine-tune, which learns from labels; give --label cls, or a "
                "field of the samples' JSON"
            )
        if not 0 <= self.seed < 1 << 31:
            raise ConfigError(f"seed={self.seed}; it must be from 0 to {(1 << 31) - 1}")

        queue, batch_size = getattr(self.method, "queue", None), self.stream.batch_size
        if queue is not None and self.sizes == "given":
            fitting = max(1, round(queue.capacity / batch_size)) * batch_size
            whole = isinstance(self.method, MoCoConfig)  # a batch replaces the oldest batch
            if queue.capacity < batch_size or (whole and queue.capacity % batch_size):
                needed = "a multiple of" if whole else "at least"
                raise ConfigError(
                    f"queue capacity={queue.capacity} with batch_size={batch_size}; it must be "
                    f"{needed} the batch: give --method.queue.capacity {fitting}, or another "
                    "--stream.batch-size"
                )

    @property
    def method_name(self) -> str:
        """The method's key in `METHODS`."""
        return next(name for name, kind in METHODS.items() if type(self.method) is kind)

    @property
    def largest_crop(self) -> int:
        """Side of the largest view in pixels."""
        return max(group.size for group in self.crops.groups)


def to_fields(config: RunConfig) -> dict[str, Any]:
    """Plain tables, as TOML has them; what is None is left out."""
    tables = _without_none(asdict(config))
    tables["method"] = {"name": config.method_name, **tables["method"]}
    if not config.origins:
        del tables["origins"]
    result: dict[str, Any] = tables
    return result


def from_fields(tables: dict[str, Any]) -> RunConfig:
    """The run that `to_fields` wrote down. Raises ConfigError naming the field that is wrong."""
    parts = dict(tables)
    name = dict(_table(parts, "method")).pop("name", None)
    if name not in METHODS:
        raise ConfigError(f"method.name={name!r}; it must be one of {', '.join(METHODS)}")
    method = {key: value for key, value in parts["method"].items() if key != "name"}
    backbone = _table(parts, "backbone")
    parts["backbone"] = backbone | {"options": _with_tuples(_table(backbone, "options"))}
    try:
        parts["method"] = TypeAdapter(METHODS[name]).validate_python(method)
        config = TypeAdapter(RunConfig).validate_python(parts)
    except ValidationError as error:
        raise ConfigError(_explain(error.errors()[0])) from error
    known, given = flatten(to_fields(config)), flatten(tables)
    for field_name in sorted(given.keys() - known.keys()):
        parent = field_name.rpartition(".")[0]
        allowed = [name for name in known if name.rpartition(".")[0] == parent]
        raise ConfigError(
            f"{field_name} is no field of a configuration; there are {', '.join(allowed)}; mend "
            "the name, or remove the line"
        )
    return config


def _table(tables: dict[str, Any], name: str) -> dict[str, Any]:
    found = tables.get(name, {})
    if not isinstance(found, dict):
        raise ConfigError(f"{name}={found!r}; it must be a table: compare with a run's config.toml")
    return found


def _explain(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"]) or "the configuration"
    if error["type"] == "missing":
        return f"{place} is missing; add it: compare with the config.toml of a run"
    return (
        f"{place}={error['input']!r}: {error['msg'].lower()}; mend it: compare with the "
        "config.toml of a run"
    )


def write_toml(config: RunConfig, path: Path) -> None:
    """Save a run so that `read_toml` gives the same one. A kill leaves the file as it was."""
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(tomli_w.dumps(to_fields(config)))
    os.replace(draft, path)


def read_toml(path: Path) -> RunConfig:
    """Load a run. Raises ConfigError."""
    try:
        return from_fields(tomllib.loads(path.read_text()))
    except (OSError, ValueError) as error:  # TOML and UTF-8 that are none are both ValueErrors
        raise ConfigError(
            f"{path} cannot be read as a configuration ({error}); give the config.toml of a run"
        ) from error


def check_same(old: RunConfig, new: RunConfig) -> None:
    """Raise ConfigError if `new` cannot continue a run that was started as `old`."""
    before, now = flatten(to_fields(old)), flatten(to_fields(new))
    names = [name for name in before | now if before.get(name) != now.get(name)]
    changed = [
        name for name in names if name not in _FREE_ON_RESUME and not name.startswith("origins.")
    ]
    if changed:
        name = changed[0]
        raise ConfigError(
            f"this run was started with {name}={before.get(name)}, now it is {now.get(name)}; "
            "a run goes on with its own settings: take the change back, or give a new --out"
        )


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, list | tuple):
        return [_without_none(entry) for entry in value]
    return value


def _with_tuples(value: Any) -> Any:
    """Lists, which are all that TOML has, as the tuples that recipes are written with."""
    if isinstance(value, dict):
        return {key: _with_tuples(entry) for key, entry in value.items()}
    return tuple(_with_tuples(entry) for entry in value) if isinstance(value, list) else value


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Tables within tables as one, whose names have dots."""
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        pairs = ((str(place), entry) for place, entry in enumerate(value))  # type: ignore[assignment]
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, entry in pairs:
        flat |= flatten(entry, f"{prefix}.{key}" if prefix else str(key))
    return flat
