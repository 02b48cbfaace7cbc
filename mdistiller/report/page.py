"""The page: one HTML file with its pictures and style inside."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Sequence

from ..errors import UserError
from ..export.place import staging
from ..paths import check_not_device, user_path
from .blocks import Facts, Figure, Gallery, Note, Panel, Section
from .svg import ID

LIBRARIES = {"matplotlib": "matplotlib", "jinja2": "Jinja2"}  # names to install, by import name
MARK = b'<meta name="generator" content="mdistiller report">'  # near the beginning of every page
TEMPLATE = Path(__file__).parent / "template"


def target_page(output: str | os.PathLike[str], overwrite: bool) -> Path:
    """Return the path of the page to write.

    Args:
        output: the file.
        overwrite: whether it may be another file than an earlier report.

    Raises:
        UserError: it is a folder, its folder is missing, or it holds something else.
    """
    target = user_path(output)
    if target.is_dir():
        raise UserError(f"--output {target} is a folder; give the name of a file, such as {target / 'report.html'}")
    if not target.absolute().parent.is_dir():
        raise UserError(f"--output {target}: there is no folder {target.absolute().parent}; make it, or give another")
    if os.path.lexists(target) and not overwrite and not _is_report(target):
        raise UserError(f"--output {target} exists and is not an earlier report; give --overwrite, or another --output")
    return target


def _is_report(path: Path) -> bool:
    try:
        check_not_device(path)
        with path.open("rb") as file:
            return MARK in file.read(1024)
    except OSError:
        return False


def render(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """Return the page as HTML. All texts are escaped; only drawings are not, which `draw` made."""
    import jinja2
    from markupsafe import Markup

    def svg(panel: Panel, number: int) -> Markup:
        return Markup(panel.svg.replace(ID, f"p{number}-"))

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE), autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["svg"] = svg
    kinds = {"facts": Facts, "figure": Figure, "gallery": Gallery, "note": Note}
    environment.tests.update({name: lambda block, kind=kind: isinstance(block, kind) for name, kind in kinds.items()})
    style = Markup((TEMPLATE / "page.css").read_text(encoding="utf-8"))
    page = environment.get_template("page.html").render(title=title, subtitle=subtitle, sections=sections, style=style)
    return "\n".join(line for line in page.splitlines() if line.strip()) + "\n"


def write_page(target: Path, page: str) -> None:
    """Write the page; a file that was there stays as it was if that fails.

    Raises:
        UserError: the file cannot be written.
    """
    with staging(target) as folder:
        file = folder / target.name
        with file.open("w", encoding="utf-8") as handle:
            handle.write(page)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(file, target)
