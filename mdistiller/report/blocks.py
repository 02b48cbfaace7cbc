"""What a section of the page consists of. All texts are plain; the template escapes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import List, Sequence, Union

MAX_LENGTH = 60  # characters of a name that somebody else chose


@dataclass(frozen=True)
class Panel:
    """A drawing.

    Attributes:
        title: its heading.
        svg: what `draw` returned.
        alt: says what is seen, for readers who do not see it.
    """

    title: str
    svg: str
    alt: str


@dataclass(frozen=True)
class Figure:
    """Panels beside each other, with a caption."""

    panels: Sequence[Panel]
    caption: str


@dataclass(frozen=True)
class Table:
    """A table; its first column names the rows.

    Attributes:
        head: the cells of the first row.
        rows: the other cells.
        caption: says what the numbers are.
        numeric: whether the columns after the first hold numbers.
        folded: the line that unfolds it; if empty, it is open.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str
    numeric: bool = True
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


Block = Union[Figure, Table, Gallery, Note]


@dataclass
class Section:
    """A section: `key` is its address in the page, `lead` its first sentences."""

    key: str
    title: str
    lead: str
    blocks: List[Block] = field(default_factory=list)


def plain(text: object, limit: int = MAX_LENGTH) -> str:
    """Return one line of printable characters, of at most `limit`; names come from strangers."""
    line = "".join(c if c.isprintable() else "?" for c in " ".join(str(text).split()))
    return line if len(line) <= limit else line[: limit - 1] + "…"


def percent(fraction: float, digits: int = 2) -> str:
    """Return a fraction as a percentage without its sign; a dash if it is NaN."""
    return "–" if fraction != fraction else f"{100 * fraction:.{digits}f}"
