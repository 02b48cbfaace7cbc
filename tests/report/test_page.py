"""The whole page: it needs nothing from elsewhere, is well formed, and holds what was measured."""

import json
import re
from collections import Counter
from html.parser import HTMLParser

import pytest

from mdistiller.report.blocks import Note, Section
from mdistiller.report.page import render
from mdistiller.report.report import write_report
from mdistiller.report.svg import draw
from tests.report.conftest import CLASSES

VOID = {"meta", "img", "br", "link"}


class Reader(HTMLParser):
    """Collects elements, their attributes and the text; fails where an element is not closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.words = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)


@pytest.fixture(scope="module")
def seen(page):
    return Reader(page.read_text(encoding="utf-8"))


def all_of(seen, tag):
    return [attributes for name, attributes in seen.elements if name == tag]


def test_it_needs_nothing_from_elsewhere(seen, page):
    assert not {name for name, _ in seen.elements} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for name, attributes in seen.elements:
        for key, value in attributes.items():
            if key in ("src", "href", "xlink:href", "srcset", "data", "action"):
                assert value.startswith(("#", "data:image/")), (name, key, value[:60])
            assert not key.startswith("on"), (name, key)
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"@import|url\((?!#)", text)
    assert "default-src 'none'" in text


def test_hostile_names_are_text(seen):
    text = "".join(seen.words)
    assert CLASSES[0] in text and CLASSES[1] in text
    assert "?class' \"--><script>" in text, "a character that turns the direction of writing is replaced"
    assert "\u202e" not in text
    sources = {attributes.get("src", "")[:11] for attributes in all_of(seen, "img")}
    assert sources <= {"data:image/"}


def test_identifiers_are_unique_and_links_lead_somewhere(seen):
    ids = Counter(attributes["id"] for _, attributes in seen.elements if "id" in attributes)
    assert [name for name, count in ids.items() if count > 1] == []
    for _, attributes in seen.elements:
        for value in attributes.values():
            for name in re.findall(r"^#([\w-]+)$|url\(#([\w-]+)\)", value or ""):
                assert "".join(name) in ids, name
    links = [link["href"][1:] for link in all_of(seen, "a")]
    sections = [section["id"] for section in all_of(seen, "section")]
    assert links == [sections[0], *sections] and len(sections) == 11


def test_pictures_have_a_text_and_figures_a_caption(seen):
    drawings = [attributes for _, attributes in seen.elements if attributes.get("role") == "img"]
    assert len(drawings) == len(all_of(seen, "svg")) >= 20
    assert all(len(attributes["aria-label"]) > 10 for attributes in drawings)
    assert all(picture["alt"] for picture in all_of(seen, "img"))
    names = Counter(name for name, _ in seen.elements)
    assert names["figure"] == names["figcaption"] > 8 and names["h1"] == 1


def test_drawings_take_color_and_size_from_the_page(seen):
    for svg in all_of(seen, "svg"):
        assert "width" not in svg and "height" not in svg and svg["viewbox"]
    assert any("currentColor" in (attributes.get("style") or "") for _, attributes in seen.elements)
    assert not any("#010203" in (attributes.get("style") or "") for _, attributes in seen.elements)


def test_it_shows_the_measured_accuracies(seen, trained):
    text = " ".join(seen.words)
    for name in ("vanilla", "sfakd"):
        summary = json.loads((trained / "output" / name / "summary.json").read_text())
        assert f"{summary['best']['deployed_top1']:.2f}" in text
    assert "teacher resnet14" in text and "SFAKD" in text


def test_the_same_runs_give_the_same_page(page, trained):
    from mdistiller.report import report

    sections = [Section("a", "A", "Lead.", [Note("It is <b>.")])]
    assert report.render("T & T", "S", sections) == render("T & T", "S", sections)
    assert "It is &lt;b&gt;." in render("T & T", "S", sections) and "T &amp; T" in render("T & T", "S", sections)

    def paint(axes):
        axes.plot([1, 2], [1, 2], label="$x$ <y>")
        axes.legend()

    assert draw(paint) == draw(paint) and "$x$ &lt;y&gt;" in draw(paint)


def test_an_earlier_report_is_replaced_and_nothing_else(runs, only_the_summary, tmp_path, command):
    target = tmp_path / "my page.html"
    arguments = ("report", runs / "vanilla", "--output", target)
    assert command(*arguments)[::2] == (0, "")
    first = target.read_text(encoding="utf-8")
    target.write_text(first + "<!-- edited -->", encoding="utf-8")
    assert command(*arguments)[0] == 0 and target.read_text(encoding="utf-8") == first
    target.write_text("my thesis")
    status, _, err = command(*arguments)
    assert status == 2 and "exists and is not an earlier report; give --overwrite" in err
    assert target.read_text() == "my thesis"
    assert command(*arguments, "--overwrite")[0] == 0 and target.read_text(encoding="utf-8") == first
    assert sorted(path.name for path in tmp_path.glob("*html*")) == ["my page.html"]


def test_the_reference_may_be_another_run(runs, only_the_summary, tmp_path):
    paths = [runs / "vanilla", runs / "sfakd"]
    text = write_report(paths, tmp_path / "a.html", reference=str(runs / "sfakd")).read_text(encoding="utf-8")
    assert "<h1>Report on vanilla</h1>" in text and "vanilla beside sfakd" in text
    only = write_report(paths[:1], tmp_path / "b.html", reference=str(runs / "sfakd")).read_text(encoding="utf-8")
    assert only == text
