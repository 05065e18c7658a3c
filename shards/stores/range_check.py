"""Whether an answer to a range request holds what was asked for."""

import re
from collections.abc import Mapping

from shards.records import ShardInfo
from shards.stores.retry import WrongAnswer
from shards.stores.store import changed

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


def check_content_range(said: str | None, shard: ShardInfo, start: int) -> None:
    """Raise unless the answer begins at `start` of an object of the listed length.

    An answer that says nothing holds everything: right by chance where `start` is 0. One that ends
    early is right as far as it goes.
    """
    if said is None:
        if start > 0:
            raise WrongAnswer("the whole shard came when a part was asked for")
        return
    found = _CONTENT_RANGE.fullmatch(said.strip())
    if found is None or int(found[1]) != start:
        raise WrongAnswer(f"{said.strip()[:60]!r} came when byte {start} was asked for")
    if found[3] not in ("*", str(shard.num_bytes)):
        raise changed(shard)


def has_tag(shard: ShardInfo) -> bool:
    """Whether the version of a shard of a web server is an etag: one holds no blank, dates do."""
    return " " not in shard.version and shard.version != f"-{shard.num_bytes}"


def is_same_version(headers: Mapping[str, str], shard: ShardInfo) -> bool:
    """Whether the headers of an answer may be those of the listed object.

    Servers do not send the same headers with every answer: what is there has to agree.
    """
    tag, date = headers.get("ETag", "").strip('"'), headers.get("Last-Modified")
    if has_tag(shard):
        return not tag or tag == shard.version
    return not date or shard.version in (f"{date}-{shard.num_bytes}", f"-{shard.num_bytes}")
