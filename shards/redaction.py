"""What may be shown of an address and of an error: no user, password, signed query or key."""

import re
from collections.abc import Iterator
from urllib.parse import parse_qsl, quote, unquote

_HTTP = ("http", "https")
# In the addresses of these stores the part before "@" is the container, no secret.
_CONTAINER_BEFORE_AT = ("az", "abfs", "abfss", "wasb", "wasbs")
_USER = re.compile(r"://[^/\s]*@")
_QUERY = re.compile(r"\?\S+")
_FRAGMENT = re.compile(r"(https?://[^\s?#]*)#\S+")
_NAMED = re.compile(
    r"(?i)([\w-]*(?:signature|secret|token|password|credential|access-?key(?:-?id)?|sig)=)[^\s&]+"
)
_HEADER = re.compile(r"(?i)((?:authorization|x-amz-[\w-]+)['\"]?: ?['\"]?)[^'\"\r\n]+")
_KEY_ID = re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{12,}\b")
# Shorter values of a query, such as "dl=1", are words of every other message.
_MIN_SECRET = 5


def redact(uri: str) -> str:
    """`uri` without user, password, query and fragment: safe to print, log and save."""
    scheme, mark, rest = uri.partition("://")
    if not mark:
        return uri
    rest = re.split(r"[?#]" if scheme in _HTTP else r"\?", rest, maxsplit=1)[0]
    host, slash, path = rest.partition("/")
    if scheme not in _CONTAINER_BEFORE_AT:
        host = host.rpartition("@")[2]
    return scheme + mark + host + slash + path


def scrub(text: str, uri: str = "") -> str:
    """`text` without the secrets of the addresses in it, and without those of `uri` anywhere."""
    for secret in _secrets(uri):
        text = text.replace(secret, "…")
    text = _FRAGMENT.sub(r"\1#…", _USER.sub("://", text))
    text = _HEADER.sub(r"\1…", _NAMED.sub(r"\1…", _QUERY.sub("?…", text)))
    return _KEY_ID.sub("…", text)


def short(error: BaseException, uri: str = "") -> str:
    """The message of `error` on one line, without secrets; its kind where it says too little."""
    text = scrub(" ".join(str(error).split()), uri)
    if len(text) < 4:
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text[:200]


def cause_to_show(uri: str, error: BaseException) -> BaseException | None:
    """`error`, unless a traceback of it could show a secret: of `uri`, or of where that led."""
    if redact(uri) != uri:
        return None
    said = [str(part) for found in chain(error) for part in (found, *notes(found))]
    return error if all(scrub(text) == text for text in said) else None


def chain(error: BaseException) -> Iterator[BaseException]:
    """`error` and what led to it, the newest first: what a traceback of it would show."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        hidden = None if found.__suppress_context__ else found.__context__
        found = found.__cause__ or hidden


def notes(error: BaseException) -> list[str]:
    """What was added to `error` on its way."""
    return list(getattr(error, "__notes__", ()))


def _secrets(uri: str) -> list[str]:
    """What `redact` takes from `uri`, in all spellings of libraries; the longest first."""
    scheme, mark, rest = uri.partition("://")
    if not mark or redact(uri) == uri:
        return []
    found: set[str] = set()
    address, _, query = rest.partition("?")
    if scheme not in _CONTAINER_BEFORE_AT and "@" in address.partition("/")[0]:
        user = address.partition("/")[0].rpartition("@")[0]
        found |= {user, *user.split(":", 1)}
    found |= {query, *(value for _, value in parse_qsl(query))}
    found |= {spelling(value) for value in found for spelling in (quote, unquote)}
    found |= {quote(value, safe="") for value in found}
    return sorted((value for value in found if len(value) >= _MIN_SECRET), key=len, reverse=True)
