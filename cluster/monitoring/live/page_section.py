"""Page section: a question of the live page, its answer, and its charts as data.

The page draws its operational sections itself; another plane adds sections of its own with these
classes. `/live/sections.json` carries them to the browser, see `section_specs`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cluster.monitoring.live.run_window import RunWindow

Tone = Literal["good", "watch", "bad", "quiet"]


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer to a question of the page: a tone, a few words, and a sentence."""

    tone: Tone
    short: str
    text: str

    def to_json(self) -> dict[str, str]:
        return {"tone": self.tone, "short": self.short, "text": self.text}


@dataclass(frozen=True, slots=True)
class ChartLine:
    """A line for each series of a gauge, over the steps; without a name the label names it."""

    metric: str
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageChart:
    """A chart over the steps, with the thresholds of its metrics as dotted lines.

    `small` charts stand in a grid below the others. `note` is written at the thresholds.
    """

    id: str
    title: str
    lines: tuple[ChartLine, ...]
    small: bool = False
    percent: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageSection:
    """A section, placed before the section `before` of the page.

    `answer` returns None if the question cannot be answered; the page then hides the section.
    """

    id: str
    title: str
    before: str
    charts: tuple[PageChart, ...]
    answer: Callable[[RunWindow], Answer | None]


def section_specs(sections: Sequence[PageSection]) -> list[Mapping[str, Any]]:
    """Return the sections as JSON values for the page's script."""
    return [
        {
            "id": one.id,
            "title": one.title,
            "before": one.before,
            "charts": [_chart_spec(chart) for chart in one.charts],
        }
        for one in sections
    ]


def _chart_spec(chart: PageChart) -> Mapping[str, Any]:
    return {
        "id": chart.id,
        "title": chart.title,
        "lines": [{"metric": line.metric, "name": line.name} for line in chart.lines],
        "small": chart.small,
        "percent": chart.percent,
        "note": chart.note,
    }
