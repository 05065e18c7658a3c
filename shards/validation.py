"""Validation: the first fault that pydantic found in data, in one line of words."""

from pydantic import ValidationError


def explain_invalid(error: ValidationError) -> str:
    """Return the place, the value and the cause of the first fault, in one line."""
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        return f"{place} is missing"
    found = repr(first["input"])[:80]
    cause = first["msg"][:1].lower() + first["msg"][1:]
    return f"{place}={found}: {cause}" if place else cause
