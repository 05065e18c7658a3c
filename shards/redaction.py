"""What may be shown of an address and of an error: no user, no password, no signed query."""

import re

_HTTP = ("http", "https")
# In the addresses of these stores the part before "@" is the container, no secret.
_CONTAINER_BEFORE_AT = ("az", "abfs", "abfss", "wasb", "wasbs")


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


def cause_to_show(uri: str, error: Exception) -> Exception | None:
    """`error`, unless a traceback of it could show the secrets in `uri`."""
    return error if redact(uri) == uri else None


def short(error: BaseException) -> str:
    """The message of `error` on one line, without addresses' secrets."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r"://[^/\s@]*@", "://", text)
    return re.sub(r"\?\S+", "?…", text)[:200]
