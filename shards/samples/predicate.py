"""User predicate: an importable function of the metadata and the image header of a sample.

    def keep(metadata, image):            # --admission.predicate my_filters:keep
        return metadata.get("similarity", 0) > 0.3 and image.width > 200

The predicate defines which samples are the data, so it must be a pure function: the same answer in
every process, at any time. It sees the header and the encoded bytes of the image, no pixels.
"""

import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

from shards.errors import ConfigError
from shards.images.image_header import ImageHeader
from shards.records import Reason, Sample
from shards.samples.metadata import MetadataError, read_metadata

Predicate = Callable[[Mapping[str, Any], ImageHeader], bool]


def resolve_predicate(name: str) -> Predicate:
    """Return the function that "package.module:function" names. Raises ConfigError."""
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise ConfigError(
            f"predicate={name!r}; it must name a function as 'package.module:function'"
        )
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise ConfigError(
            f"predicate={name!r} cannot be imported ({type(error).__name__}: {error}); it must be "
            "a function of a module that is installed, or is on PYTHONPATH, on every machine that "
            "reads images"
        ) from error
    if not callable(found):
        raise ConfigError(
            f"predicate={name!r} is a {type(found).__name__}; it must be a function of "
            "(metadata, image) that returns True for samples to keep"
        )
    _check_arguments(name, found)
    predicate: Predicate = found
    return predicate


def _check_arguments(name: str, function: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(function)
    except ValueError:  # functions written in C have no signature; the first sample will show
        return
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise ConfigError(
            f"predicate={name!r} takes {signature}; it must take (metadata, image) and return "
            "True for samples to keep"
        ) from error


def apply_predicate(
    predicate: Predicate, sample: Sample, image: ImageHeader
) -> tuple[Reason, str] | None:
    """Return None if the predicate keeps the sample, else reason and detail of the reject.

    The metadata are the JSON object of the sample, with its key as "__key__".
    """
    try:
        metadata = {**read_metadata(sample), "__key__": sample.key}
    except MetadataError as error:
        return "predicate_failed", str(error)
    try:
        answer = predicate(metadata, image)
        return None if answer else ("predicate", f"it returned {answer!r}"[:200])
    except Exception as error:  # user code on untrusted data may raise anything
        return "predicate_failed", f"{type(error).__name__}: {error}"[:200]
