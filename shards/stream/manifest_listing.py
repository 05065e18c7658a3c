"""From shard patterns to a manifest: list the shards, and probe a few of them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from shards.errors import ManifestError, NotATar, ShardUnreadable
from shards.member_names import WEBDATASET_NAMES, Keys, NameRule
from shards.records import Sample, ShardInfo
from shards.redaction import redact
from shards.samples.key_rule import detect_key_rule
from shards.stores.range_reader import RangeReader
from shards.stores.shard_listing import find_unfinished, list_shards
from shards.stream.manifest import Manifest
from shards.tars.chunk_reader import read_shard_head
from shards.tars.headers import BLOCK, is_header

_NUM_PROBES = 3
_PROBE_BYTES = 1 << 20
_USUAL_SAMPLE_BYTES = float(1 << 17)

# A shard that is no tar of samples, or cannot be read, is refused, or is listed like the others.
BadShards = Literal["refuse", "report"]


def open_manifest(
    patterns: str | Sequence[str],
    reader: RangeReader,
    *,
    separate: bool = False,
    keys: Keys = "auto",
    names: Mapping[int, NameRule] | None = None,
    bad_shards: BadShards = "refuse",
) -> Manifest:
    """List the shards of all `patterns`, and probe a few of them.

    The patterns form one source, or with `separate` one source each. `keys` "auto" detects the rule
    of keys of each source from the probes, unless `names` has that of an earlier listing. Raises
    ManifestError if a pattern matches nothing or a probed shard is not a tar of samples, and
    ShardUnreadable if it cannot be read. With `bad_shards` "report" one of several such shards is
    listed like the others, for a report on all of them.
    """
    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    listed = [list_shards(pattern, reader.stores) for pattern in patterns]
    empty = tuple(shard.uri for found in listed for shard in found if not shard.num_bytes)
    listed = [[shard for shard in found if shard.num_bytes] for found in listed]
    if separate:
        sources = [
            [replace(shard, source=number) for shard in found]
            for number, found in enumerate(listed)
        ]
    else:
        by_uri = {shard.uri: shard for found in listed for shard in found}
        sources = [[by_uri[uri] for uri in sorted(by_uri)]]
    shards: list[ShardInfo] = []
    sizes: list[list[float]] = []
    for number, found in enumerate(sources):
        rule = (names or {}).get(number, WEBDATASET_NAMES)
        rule = rule if keys == "auto" else replace(rule, keys=keys)
        is_known = keys != "auto" or number in (names or {})
        refuse = bad_shards == "refuse" or sum(map(len, sources)) == 1
        probes = _probe_some(found, rule, reader, refuse)
        if not is_known:
            detected = detect_key_rule([one for probe in probes for one in probe.samples])
            if detected != rule.keys:
                rule = replace(rule, keys=detected)
                probes = _probe_some(found, rule, reader, refuse)
        shards += (replace(shard, names=rule) for shard in found)
        sizes.append(_sample_bytes(probes) if refuse else _any_sample_bytes(probes))
    means = tuple(float(np.mean(probed)) for probed in sizes)
    sample_bytes = float(np.mean([size for probed in sizes for size in probed]))
    return Manifest(
        tuple(shards), sample_bytes, patterns, means, empty, find_unfinished(shards, reader.stores)
    )


def _probe_some(
    shards: Sequence[ShardInfo], rule: NameRule, reader: RangeReader, refuse: bool
) -> "list[_Probe]":
    """Return probes of a few shards of a source; unless `refuse`, without those that fail."""
    probes = []
    for shard in _spread(shards):
        try:
            probes.append(_Probe(replace(shard, names=rule), reader))
        except (ManifestError, ShardUnreadable):
            if refuse:
                raise
    return probes


class _Probe:
    """Samples at the start of a shard."""

    def __init__(self, shard: ShardInfo, reader: RangeReader) -> None:
        self.shard = shard
        try:
            found = read_shard_head(reader, shard, _PROBE_BYTES).found
        except NotATar as error:
            raise ManifestError(f"{redact(shard.uri)} is not a tar: {error}") from error
        self.samples = [item for item in found if isinstance(item, Sample)]
        self._check_not_nested()

    @property
    def sample_bytes(self) -> float | None:
        """Mean size of a sample; None if there is no sample."""
        if not self.samples:
            return None
        return min(self.shard.num_bytes, _PROBE_BYTES) / len(self.samples)

    def _check_not_nested(self) -> None:
        for sample in (sample for sample in self.samples if len(sample.fields) == 1):
            for extension, data in sample.fields.items():
                if data[257:262] == b"ustar" and is_header(data[:BLOCK]):
                    raise ManifestError(
                        f"{redact(self.shard.uri)} holds a tar inside the tar "
                        f"({sample.key}.{extension}); a shard must hold the images themselves: "
                        "extract it and give the inner tars"
                    )


def _spread(shards: Sequence[ShardInfo]) -> list[ShardInfo]:
    """Return the first, the middle and the last shard of a source."""
    rows = sorted({0, len(shards) // 2, len(shards) - 1})[:_NUM_PROBES]
    return [shards[row] for row in rows]


def _any_sample_bytes(probes: "Sequence[_Probe]") -> list[float]:
    """Return the mean sample size in each of a few shards; a guess if none has a sample."""
    known = [probe.sample_bytes for probe in probes if probe.sample_bytes is not None]
    return known or [_USUAL_SAMPLE_BYTES]


def _sample_bytes(probes: Sequence[_Probe]) -> list[float]:
    """Return the mean sample size in each of a few shards of a source."""
    known = [probe.sample_bytes for probe in probes if probe.sample_bytes is not None]
    if not known:
        raise ManifestError(
            f"no sample was found at the start of {redact(probes[0].shard.uri)}; a shard holds "
            "members such as 000017.jpg and 000017.cls: check it with `streamssl shards verify`"
        )
    return known
