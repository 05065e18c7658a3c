"""Settings of the encoder."""

from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from shards.errors import ConfigError

_NUM_CHANNELS = 3
_CFGS: Final = ("pretrained_cfg", "pretrained_cfg_overlay")  # tables that may name weights
_ADDRESSES: Final = ("url", "hf_hub_id", "source")
_SOURCES: Final = (*_ADDRESSES, "hf_hub_filename", "file", "state_dict", "custom_load")


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneConfig:
    """A timm model and its options, such as `{"drop_path_rate": 0.1}`; on a command line
    `--backbone.options.drop_path_rate 0.1`, and so for every option of the model.

    `stem`: "imagenet" leaves the network as it is; "small" keeps every pixel of small images (see
    `modules.backbones.build_backbone`); "half" is "small" with stride 2, for ResNets: a quarter of
    the work, for CPUs; "auto" is "small" for crops of at most 64 pixels. A small ResNet:
    `name="resnet18", options={"channels": (32, 64, 128, 256), "layers": (1, 1, 1, 1)}`.

    `selective_kernels`: above 0, the bottlenecks of a ResNet select between two kernels (SimCLR v2
    has 0.0625: the width of the selecting network, relative to the channels). `patches`: "moco-v3"
    freezes a random first layer and fixed sine positions in a transformer.

    The options `pretrained` and `checkpoint_path` name initial weights. Only a new run loads them:
    every checkpoint holds all weights.
    """

    name: str = "resnet50"
    options: dict[str, Any] = field(default_factory=dict)
    stem: Literal["auto", "imagenet", "small", "half"] = "auto"
    selective_kernels: float = 0.0
    patches: Literal["trained", "moco-v3"] = "trained"

    def __post_init__(self) -> None:
        if self.stem not in ("auto", "imagenet", "small", "half"):
            raise ConfigError(
                f"stem={self.stem!r}; auto, imagenet, small and half are known; choose one of them"
            )
        if not 0 <= self.selective_kernels <= 1:
            raise ConfigError(
                f"selective_kernels={self.selective_kernels}; it must be from 0, for none, to 1; "
                "SimCLR v2 has 0.0625"
            )
        if self.options.get("in_chans", _NUM_CHANNELS) != _NUM_CHANNELS:
            raise ConfigError(
                f"backbone.options has in_chans={self.options['in_chans']}; images have "
                f"{_NUM_CHANNELS} channels here: red, green and blue; leave in_chans out"
            )

    @property
    def weights(self) -> str:
        """Source of the initial weights, a file or a name; "" if they are random."""
        if path := self.options.get("checkpoint_path"):
            return str(path)
        if not self.options.get("pretrained"):
            return ""
        overlay = self.options.get("pretrained_cfg_overlay")
        file = overlay.get("file") if isinstance(overlay, dict) else None
        return str(file) if file else f"the pretrained weights of {self.name!r}"

    @property
    def fetched(self) -> str:
        """Address in these settings from which weights would be fetched; "" if there is none."""
        tables = [self.options.get(name) for name in _CFGS]
        found = [
            str(table[name])
            for table in tables
            if isinstance(table, dict)
            for name in _ADDRESSES
            if table.get(name)
        ]
        return found[0] if found and self.options.get("pretrained") else ""

    def without_weights(self) -> "BackboneConfig":
        """Return the same network with random weights, to be filled from a checkpoint."""
        names = ("checkpoint_path", "pretrained")
        options = {k: _without_sources(k, v) for k, v in self.options.items() if k not in names}
        return replace(self, options=options)


def _without_sources(name: str, value: Any) -> Any:
    if name not in _CFGS or not isinstance(value, dict):
        return value
    return {key: entry for key, entry in value.items() if key not in _SOURCES}
