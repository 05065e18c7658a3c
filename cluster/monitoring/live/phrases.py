"""Phrases of the answers: numbers, durations and names of series as a person writes them."""


def series_words(series: str) -> str:
    """Return the name of a series in words."""
    name = series.partition("{")[0].removeprefix("streamssl_")
    return name.removesuffix("_total").removesuffix("_ratio").replace("_", " ")


def label_words(series: str) -> str:
    """Return the value of the only label of a series in words."""
    return series.partition('"')[2].rstrip('"}').replace("_", " ")


def listed(parts: list[str]) -> str:
    """Return a list as the beginning of a sentence: "A, b and c"."""
    words = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
    return words[:1].upper() + words[1:]


def plural(word: str, number: float) -> str:
    """Return the word, with an s unless the number is 1."""
    return word if number == 1 else f"{word}s"


def share_of_time(share: float) -> str:
    """Return a share of time in percent."""
    return f"{share:.0%}" if share >= 0.005 else "Less than 1%"


def percent(share: float) -> str:
    """Return a share in percent, small ones with two decimals."""
    return f"{share:.0%}" if share >= 0.01 else f"{share:.2%}"


def rate(value: float) -> str:
    """Return a rate, small ones with two digits."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def step_time(seconds: float) -> str:
    """Return the seconds of a step, in ms below a second."""
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def duration(seconds: float) -> str:
    """Return seconds, minutes or hours; never a negative time."""
    seconds = max(0.0, seconds)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
