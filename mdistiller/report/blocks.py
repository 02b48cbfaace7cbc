"""What a section of the page consists of. All texts are plain; the template escapes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Collection, List, Sequence, Tuple, Union

from ..errors import printable

MAX_LENGTH = 60  # characters of a name that somebody else chose


@dataclass(frozen=True)
class Panel:
    """A drawing.

    Attributes:
        title: the heading of the drawing.
        svg: the SVG element that `draw` returned.
        alt: a text that says what is seen, for readers who do not see it.
    """

    title: str
    svg: str
    alt: str


@dataclass(frozen=True)
class Figure:
    """Panels beside each other, with a caption.

    Attributes:
        panels: the drawings.
        caption: a text that says what is seen, and how it was measured.
        narrow: whether the panels are `NARROW`, so that three fit beside each other.
        legend: names with their colors, for all panels.
    """

    panels: Sequence[Panel]
    caption: str
    narrow: bool = False
    legend: Sequence[Tuple[str, str]] = ()


@dataclass(frozen=True)
class Table:
    """A table; its first column names the rows.

    Attributes:
        head: the cells of the first row.
        rows: the other cells.
        caption: a text that says what the numbers are.
        words: the number of the first columns that hold words; the others hold numbers.
        marked: the numbers of the rows to mark.
        folded: the line that unfolds it; if empty, it is open.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str
    words: int = 1
    marked: Collection[int] = ()
    folded: str = ""


@dataclass(frozen=True)
class Picture:
    """An image of the data set: `data` is a `data:` address, `lines` are printed below it."""

    data: str
    alt: str
    lines: Sequence[str]
    pixelated: bool


@dataclass(frozen=True)
class Gallery:
    """Images of the data set, with a caption."""

    title: str
    pictures: Sequence[Picture]
    caption: str


@dataclass(frozen=True)
class Note:
    """A sentence; most often it says why something is missing."""

    text: str


@dataclass(frozen=True)
class Facts:
    """A few numbers in large letters, each with its meaning."""

    facts: Sequence[Tuple[str, str]]


Block = Union[Figure, Table, Gallery, Note, Facts]


@dataclass
class Section:
    """A section: `key` is its address in the page, `lead` its first sentences."""

    key: str
    title: str
    lead: str
    blocks: List[Block] = field(default_factory=list)


def plain(text: object, limit: int = MAX_LENGTH) -> str:
    """Return one line of printable characters, of at most `limit`; names come from strangers."""
    line = printable(text)
    return line if len(line) <= limit else line[: limit - 1] + "…"


def percent(fraction: float, digits: int = 2) -> str:
    """Return a fraction as a percentage without its sign; a dash if it is NaN."""
    return "–" if fraction != fraction else f"{100 * fraction:.{digits}f}"
