"""RunConfig: all settings of a run as one frozen value, and the same as TOML."""

import tomllib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
import tyro
from pydantic import TypeAdapter, ValidationError

from shards.access import raise_denied
from shards.crops.recipe import DEFINITION, CropRecipe
from shards.errors import ConfigError
from shards.files import write_atomic
from shards.samples.admission_config import AdmissionConfig
from shards.stream.stream_config import StreamConfig
from shards.validation import explain_invalid
from streamssl.config.methods.byol_config import BYOLConfig
from streamssl.config.methods.deepcluster_config import DeepClusterConfig
from streamssl.config.methods.distillation_config import DistillationConfig
from streamssl.config.methods.fine_tuning_config import FineTuneConfig
from streamssl.config.methods.mochi_config import MoCHiConfig
from streamssl.config.methods.moco_config import MoCoConfig
from streamssl.config.methods.moco_v3_config import MoCoV3Config
from streamssl.config.methods.patchmix_config import PatchMixConfig
from streamssl.config.methods.sela_config import SeLaConfig
from streamssl.config.methods.simclr_config import SimCLRConfig
from streamssl.config.methods.spcl_config import SpCLConfig
from streamssl.config.methods.supcon_config import SupConConfig
from streamssl.config.methods.swav_config import SwAVConfig
from streamssl.config.parts.backbone_config import BackboneConfig
from streamssl.config.parts.execution_rules import check_execution
from streamssl.config.parts.method_config import MethodConfig, RunFacts
from streamssl.optim.optim_config import OptimConfig
from streamssl.optim.schedules import ScheduleConfig

# Name of each method in config.toml, and its settings; `methods.registry` has its algorithm.
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

# Settings that a resumed run may change: they do not affect what was learned so far.
_FREE_ON_RESUME = {
    *("num_steps", "save_every", "keep", "max_skipped_steps"),
    *("recompute", "stream.max_bytes", "stream.num_lookahead_blocks"),
}
# Settings that may change, too, where a run goes on from a checkpoint that its user names: tensors
# keep their shapes, and samples their order.
_FREE_FROM_CHECKPOINT = {
    *("optim.base_lr", "optim.weight_decay", "optim.final_weight_decay", "optim.betas"),
    *("optim.trust_coefficient", "optim.clip_norm", "precision", "compile", "micro_batches"),
    *("method.temperature", "method.epsilon", "engine", "crop_definition"),
}
_FREE_TABLES_FROM_CHECKPOINT = ("schedule.",)

# Runs of earlier versions tell no definition of crops, and may have an engine that is gone.
_FIRST_DEFINITION = 1
_FIRST_ENGINE = "opencv"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Settings that decide what is learned, besides the data.

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
    """Number of checkpoints that are kept."""
    max_skipped_steps: int = 0
    """Steps that may be left out because loss, gradients or statistics are not finite, in the whole
    run; the next one ends it. 0: the first one does, since most of them come from a wrong rate."""
    seed: int = 0
    """Decides weights, order and crops."""
    engine: Literal["native", "dali-cpu", "dali-gpu"] = "native"
    """Crop engine: native anywhere; dali-gpu on the trainer's GPU; dali-cpu to compare."""
    crop_definition: Annotated[int, tyro.conf.Suppress] = DEFINITION
    """Number of the definition of crops in `shards.crops.recipe` that the run keeps to."""
    label: str = ""
    """A sample's label, for methods that learn from it: a member such as cls, or a JSON field."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """bf16 is autocast; Sinkhorn and normalisation stay float32."""
    compile: bool = False
    """Compile the encoder with torch.compile; it needs a C++ compiler where it trains."""
    micro_batches: int = 1
    """Parts of each batch that the encoder sees one after another, to spare memory. The loss is
    that of the whole batch; batch norm in the encoder sees one part."""
    recompute: bool = False
    """Keep only the inputs of the encoder's blocks, and compute the rest again in backward, to
    spare memory; the bits stay the same."""
    sizes: Literal["given", "auto"] = "given"
    """auto: prototypes, queue, memory, epsilon, frozen steps and learning rate are derived from the
    batch and the data, except those given by hand; given: as the recipe has them."""
    origins: Annotated[dict[str, str], tyro.conf.Suppress] = field(default_factory=dict)
    """Origins of derived sizes, by name of the setting."""

    def __post_init__(self) -> None:
        for name in ("num_steps", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}; it must be at least 1")
        if self.max_skipped_steps < 0:
            raise ConfigError(f"max_skipped_steps={self.max_skipped_steps}; it must be at least 0")
        check_execution(self.compile, self.recompute, self.micro_batches, self.stream.batch_size)
        if not 0 <= self.seed < 1 << 31:
            raise ConfigError(f"seed={self.seed}; it must be from 0 to {(1 << 31) - 1}")
        facts = RunFacts(
            method_name=self.method_name,
            batch_size=self.stream.batch_size if self.sizes == "given" else None,
            label=self.label,
        )
        self.method.check(facts)

    @property
    def method_name(self) -> str:
        """The method's key in `METHODS`."""
        return next(name for name, kind in METHODS.items() if type(self.method) is kind)

    @property
    def largest_crop(self) -> int:
        """Side of the largest view in pixels."""
        return max(group.size for group in self.crops.groups)


def to_fields(config: RunConfig) -> dict[str, Any]:
    """Return plain tables as TOML has them, without fields that are None."""
    tables = _without_none(asdict(config))
    tables["method"] = {"name": config.method_name, **tables["method"]}
    if not config.origins:
        del tables["origins"]
    result: dict[str, Any] = tables
    return result


def from_fields(tables: dict[str, Any]) -> RunConfig:
    """Return the run of tables from `to_fields`. Raises ConfigError naming a wrong field."""
    parts = {"crop_definition": _FIRST_DEFINITION} | tables
    if parts.get("engine") == _FIRST_ENGINE:
        parts["engine"] = "native"
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
        raise ConfigError(
            f"{explain_invalid(error)}; correct it: compare with the config.toml of a run"
        ) from error
    known, given = flatten(to_fields(config)), flatten(tables)
    for field_name in sorted(given.keys() - known.keys()):
        parent = field_name.rpartition(".")[0]
        allowed = [name for name in known if name.rpartition(".")[0] == parent]
        raise ConfigError(
            f"{field_name} is no field of a configuration; there are {', '.join(allowed)}; "
            "correct the name, or remove the line"
        )
    return config


def _table(tables: dict[str, Any], name: str) -> dict[str, Any]:
    found = tables.get(name, {})
    if not isinstance(found, dict):
        raise ConfigError(f"{name}={found!r}; it must be a table: compare with a run's config.toml")
    return found


def write_toml(config: RunConfig, path: Path) -> None:
    """Save a run so that `read_toml` returns the same one; replaces the file atomically."""
    write_atomic(path, toml_of(config))


def toml_of(config: RunConfig) -> str:
    """Return a run as the text of its config.toml."""
    return tomli_w.dumps(to_fields(config))


def read_toml(path: Path) -> RunConfig:
    """Load a run. Raises ConfigError."""
    try:
        return from_fields(tomllib.loads(path.read_text()))
    except (OSError, ValueError, RecursionError) as error:  # invalid TOML and UTF-8 are ValueErrors
        raise_denied(error, path)
        raise ConfigError(
            f"{path} cannot be read as a configuration ({error}); give the config.toml of a run"
        ) from error


def check_same(old: RunConfig, new: RunConfig, newest: str = "", *, named: bool = False) -> None:
    """Raise ConfigError if `new` cannot continue a run that was started as `old`.

    If its user has `named` a checkpoint to go on from, more may change; `newest` is the name of the
    newest one, for the remedy.
    """
    changed = [name for name in changes(old, new) if not (named and _may_change(name))]
    # A user cannot undo this one, so all others are named before it.
    changed.sort(key=lambda name: name == "crop_definition")
    if changed == ["crop_definition"]:
        raise ConfigError(f"{_other_crops(old)}; {_remedy_for_crops(newest)}")
    if changed:
        name = changed[0]
        before, now = (flatten(to_fields(config)).get(name) for config in (old, new))
        other = ""
        if newest and all(map(_may_change, changed)):
            other = f"add --from {newest} to change it from there on, "
        raise ConfigError(
            f"this run was started with {name}={before}, now it is {now}; a run continues with its "
            f"own settings: undo the change, {other}or give a new --out, which starts from random "
            "weights"
        )


def check_definition(config: RunConfig) -> None:
    """Raise ConfigError if crops of a run cannot be made again as they were."""
    if config.crop_definition != DEFINITION:
        raise ConfigError(
            f"{_other_crops(config)}; `streamssl shards view` shows samples of its shards: give "
            "those, and neither --run nor --batch"
        )


def _other_crops(run: RunConfig) -> str:
    return (
        f"this run has crops of definition {run.crop_definition}, and this version of streamssl "
        f"makes those of definition {DEFINITION}, which differ in single grey levels"
    )


def _remedy_for_crops(newest: str) -> str:
    fresh = "give a new --out, which starts from random weights"
    return f"add --from {newest} to go on with them from there, or {fresh}" if newest else fresh


def changes(old: RunConfig, new: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Return old and new values, by name, of settings that a resumed run may not simply change."""
    before, now = flatten(to_fields(old)), flatten(to_fields(new))
    return {
        name: (before.get(name), now.get(name))
        for name in before | now
        if before.get(name) != now.get(name)
        and name not in _FREE_ON_RESUME
        and not name.startswith("origins.")
    }


def _may_change(name: str) -> bool:
    return name in _FREE_FROM_CHECKPOINT or name.startswith(_FREE_TABLES_FROM_CHECKPOINT)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, list | tuple):
        return [_without_none(entry) for entry in value]
    return value


def _with_tuples(value: Any) -> Any:
    """Turn the lists of TOML into the tuples of recipes."""
    if isinstance(value, dict):
        return {key: _with_tuples(entry) for key, entry in value.items()}
    return tuple(_with_tuples(entry) for entry in value) if isinstance(value, list) else value


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested tables as one table with dotted names."""
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
