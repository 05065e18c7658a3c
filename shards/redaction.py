"""Redaction: remove users, passwords, signed queries and keys from addresses and errors."""

import re
from collections.abc import Iterator
from urllib.parse import parse_qsl, quote, unquote

_HTTP = ("http", "https")
# In addresses of these stores the part before "@" is the container, not a secret.
_CONTAINER_BEFORE_AT = ("az", "abfs", "abfss", "wasb", "wasbs")
_USER = re.compile(r"://[^/\s]*@")
_QUERY = re.compile(r"\?\S+")
_FRAGMENT = re.compile(r"(https?://[^\s?#]*)#\S+")
_NAMED = re.compile(
    r"(?i)([\w-]*(?:signature|secret|token|password|credential|access-?key(?:-?id)?|sig)=)[^\s&]+"
)
_HEADER = re.compile(r"(?i)((?:authorization|x-amz-[\w-]+)['\"]?: ?['\"]?)[^'\"\r\n]+")
_KEY_ID = re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{12,}\b")
# Shorter values of a query, such as "dl=1", also occur in ordinary text.
_MIN_SECRET = 5


def redact(uri: str) -> str:
    """Return `uri` without user, password, query and fragment: safe to print, log and save."""
    scheme, mark, rest = uri.partition("://")
    if not mark:
        return uri
    rest = re.split(r"[?#]" if scheme in _HTTP else r"\?", rest, maxsplit=1)[0]
    host, slash, path = rest.partition("/")
    if scheme not in _CONTAINER_BEFORE_AT:
        host = host.rpartition("@")[2]
    return scheme + mark + host + slash + path


def scrub(text: str, uri: str = "") -> str:
    """Remove the secrets of addresses in `text`, and those of `uri` anywhere in it."""
    for secret in _secrets(uri):
        text = text.replace(secret, "…")
    text = _FRAGMENT.sub(r"\1#…", _USER.sub("://", text))
    text = _HEADER.sub(r"\1…", _NAMED.sub(r"\1…", _QUERY.sub("?…", text)))
    return _KEY_ID.sub("…", text)


def short(error: BaseException, uri: str = "") -> str:
    """Return the message of `error` on one line, without secrets; with its type if it is short."""
    text = scrub(" ".join(str(error).split()), uri)
    if len(text) < 4:
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text[:200]


def cause_to_show(uri: str, error: BaseException) -> BaseException | None:
    """Return `error`, or None if its traceback could show a secret of `uri` or of a redirect."""
    if redact(uri) != uri:
        return None
    texts = [str(part) for found in chain(error) for part in (found, *notes(found))]
    return error if all(scrub(text) == text for text in texts) else None


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield `error` and its causes, newest first, as a traceback shows them."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        hidden = None if found.__suppress_context__ else found.__context__
        found = found.__cause__ or hidden


def notes(error: BaseException) -> list[str]:
    """Return the notes that were added to `error`."""
    return list(getattr(error, "__notes__", ()))


def _secrets(uri: str) -> list[str]:
    """Return the parts that `redact` removes, in all URL encodings, the longest first."""
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
