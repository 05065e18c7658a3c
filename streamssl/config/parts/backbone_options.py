"""Options of a backbone that cannot work, and the words for them. Imports no torch."""

import math
import re
from collections.abc import Iterator
from typing import Any, Final

from shards.errors import ConfigError
from streamssl.config.parts.backbone_config import BackboneConfig

_REMEDY = "remove it from [backbone.options]"
# Options that timm takes and that leave no encoder for crops of this run.
_REFUSED = {
    "num_classes": "an encoder has no classifier",
    "features_only": "it gives maps of several layers, and an encoder gives one vector",
    "out_indices": "it selects maps of layers, and an encoder gives one vector",
    "device": "each trainer places its network itself",
    "dtype": "--precision decides it",
}
_MAX_CHARS = 240
# Sizes of the largest networks that were ever trained, and more. A network of a million layers
# takes minutes to build before anything can be said about it.
_MAX_NUMBER: Final = 1 << 16
_MAX_LAYERS: Final = 1024
_MAX_ENTRIES: Final = 1024
_LAYERS: Final = re.compile(r"layer|depth|block|repeat|stage")
MAX_PARAMETERS: Final = 10_000_000_000


def check_options(config: BackboneConfig) -> None:
    """Raise ConfigError for options that no network can have here."""
    for name, why in _REFUSED.items():
        if name in config.options:
            raise _refused(config, name, why, _REMEDY)
    for name, value in config.options.items():
        _check_sizes(config, name, value)
        if name.endswith("_rate") and not _is_rate(value):
            raise _refused(config, name, "a rate is a number from 0 to below 1", "correct it")


def _check_sizes(config: BackboneConfig, name: str, value: Any) -> None:
    """Raise ConfigError for a network that no machine holds, or that takes minutes to build."""
    numbers = list(_numbers(value))
    too_large = f"at most {_MAX_NUMBER:,} is possible"
    if len(numbers) > _MAX_ENTRIES:
        raise _refused(config, name, f"at most {_MAX_ENTRIES:,} numbers are possible", "shorten it")
    if any(abs(number) > _MAX_NUMBER for number in numbers):
        raise _refused(config, name, too_large, "give a smaller number")
    if _LAYERS.search(name) and sum(numbers) > _MAX_LAYERS:
        raise _refused(
            config, name, f"at most {_MAX_LAYERS:,} layers are possible", "give fewer layers"
        )


def _numbers(value: Any) -> Iterator[float]:
    """Yield the numbers in an option; one that is not finite is larger than every limit."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for entry in value:
            yield from _numbers(entry)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value if math.isfinite(value) else math.inf


def check_weights(config: BackboneConfig) -> None:
    """Raise ConfigError if the options name weights that would not be loaded."""
    overlay = config.options.get("pretrained_cfg_overlay")
    if isinstance(overlay, dict) and not config.weights:
        for name in ("file", "url", "hf_hub_id", "state_dict"):
            if overlay.get(name):
                raise _refused(
                    config,
                    "pretrained_cfg_overlay",
                    f"its {name} is only loaded with pretrained = true",
                    "add that, or remove the overlay",
                )


def explain_options(config: BackboneConfig, error: BaseException, hint: str = "") -> str:
    """Return a sentence about options with which a network cannot be built or run."""
    return (
        f"options={shortened(config.options)} of backbone {config.name!r}{hint}: "
        f"{error_words(error)}; "
    )


def error_words(error: BaseException) -> str:
    """Return the message of another library on one line, shortened."""
    text = " ".join(str(error).split())
    named = isinstance(error, KeyError | AttributeError | IndexError) or not text
    return shortened(f"{type(error).__name__}: {text}".rstrip(": ") if named else text)


def shortened(value: Any) -> str:
    """Return the beginning of a text, or of the form of a value."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _MAX_CHARS else f"{text[: _MAX_CHARS - 2]} …"


def _refused(config: BackboneConfig, name: str, why: str, remedy: str) -> ConfigError:
    value = shortened(config.options[name])
    return ConfigError(
        f"option {name}={value} of backbone {config.name!r} cannot work: {why}; {remedy}"
    )


def _is_rate(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_rate, value))
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value is None or (is_number and math.isfinite(value) and 0 <= value < 1)
