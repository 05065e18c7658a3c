"""Waits that a store asks for: Retry-After, RateLimit and its older forms, as seconds from now."""

import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

# A store that asks for a longer pause gets its next request after this long.
_MAX_RETRY_AFTER = 60.0
# Windows of rate limits are longer: the Hub counts requests over five minutes.
_MAX_RESET = 300.0
# Some servers give the end of the window as a date: seconds or milliseconds since 1970.
_MIN_DATE, _MIN_DATE_MILLISECONDS = 1e9, 1e12
_RESETS = ("ratelimit-reset", "x-ratelimit-reset", "x-rate-limit-reset")
_NUMBER = re.compile(r"\d+(\.\d+)?")
# Of `"api";r=0;t=55` and of `limit=100, remaining=0, reset=30`.
_PART = re.compile(r"\b(r|t|remaining|reset)\s*=\s*(\d+)")


def retry_after(headers: Mapping[str, str]) -> float:
    """Return the Retry-After header, a number or a date, as seconds from now; 0 without one."""
    text = _lowered(headers).get("retry-after", "")
    if _NUMBER.fullmatch(text):
        return min(float(text), _MAX_RETRY_AFTER)
    try:
        seconds = parsedate_to_datetime(text).timestamp() - time.time()
    except (TypeError, ValueError):
        return 0.0
    return min(max(seconds, 0.0), _MAX_RETRY_AFTER)


def rate_limit_reset(headers: Mapping[str, str]) -> float:
    """Return the seconds until a used-up rate limit begins anew; 0 if no header says so.

    Only to be called for an answer that asks for fewer requests: other answers have the headers,
    too.
    """
    fields = _lowered(headers)
    waits = [_wait_of(policy) for policy in _policies(fields.get("ratelimit", ""))]
    for name in _RESETS:
        left = fields.get(name.removesuffix("reset") + "remaining", "0")
        text = fields.get(name, "")
        if _NUMBER.fullmatch(text) and left.strip() == "0":
            waits.append(_seconds(float(text)))
    return min(max(waits, default=0.0), _MAX_RESET)


def _policies(header: str) -> list[str]:
    """Split `"api";r=0;t=55, "files";r=9;t=60`; the older form has one policy, split by commas."""
    return [header] if "reset" in header else header.split(",")


def _wait_of(policy: str) -> float:
    parts = {name[:3]: float(value) for name, value in _PART.findall(policy)}
    left = parts.get("r", parts.get("rem", 0.0))
    return parts.get("t", parts.get("res", 0.0)) if left == 0 else 0.0


def _seconds(value: float) -> float:
    if value < _MIN_DATE:
        return value
    date = value / 1000 if value >= _MIN_DATE_MILLISECONDS else value
    return max(date - time.time(), 0.0)


def _lowered(headers: Mapping[str, str]) -> dict[str, str]:
    return {str(name).lower(): str(value).strip() for name, value in headers.items()}
