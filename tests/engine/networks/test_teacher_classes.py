"""A teacher with other classes: names of outputs, the rows that belong to a data set, and refused inputs."""

import sys

import pytest

from mdistiller.dataset.info import DatasetInfo
from mdistiller.engine.networks.teacher_classes import find_rows, read_outputs
from mdistiller.engine.networks.teacher_outputs import find_outputs
from mdistiller.errors import UserError


def info(*classes, root=None):
    return DatasetInfo("imagefolder", classes, 16, (0.4,) * 3, (0.2,) * 3, root)


def outputs(*names):
    return [(name,) if isinstance(name, str) else name for name in names]


@pytest.fixture
def without_timm(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "timm", None)


def test_rows_by_name_without_case_underscores_and_spaces():
    rows, missing = find_rows(
        info("hot_dog", "Tabby Cat", "cafe\u0301", "fox"), outputs("caf\u00e9", "tabbycat", "x", "Hot Dog"), "f"
    )
    assert (rows, missing) == ([3, 1, 0], ["fox"])


def test_equal_names_come_before_similar_ones():
    assert find_rows(info("cat", "Cat"), outputs("Cat", "cat"), "f") == ([1, 0], [])


def test_words_beside_the_folders_match_and_decide_between_outputs(tmp_path):
    (tmp_path / "classes.txt").write_text("n02012849\tcrane, wading bird\nn00000001 unrelated\nno wnid here\n")
    (tmp_path / "words.txt").write_text("n03126707\tmachine, lifter\n")
    given = info("n02012849", "n03126707", root=tmp_path)
    birds = outputs(("a", "crane"), "Lifter", ("b", "crane", "Wading Bird"))
    assert find_rows(given, birds, "f") == ([2, 1], [])


def test_a_file_has_names_or_wnids_and_words(tmp_path):
    file = tmp_path / "names.txt"
    file.write_bytes("\ufeffn01440764 tench, Tinca tinca\r\nhot dog\r\ncar, auto\r\n\r\n".encode())
    assert read_outputs(str(file)) == [
        ("n01440764", "tench, Tinca tinca", "tench", "Tinca tinca"),
        ("hot dog",),
        ("car, auto", "car", "auto"),
    ]


def test_imagenet_by_wnid_word_and_synonym():
    pytest.importorskip("timm")
    given = read_outputs("imagenet")
    assert len(given) == 1000
    # 0, 1, 207 and 999 are the positions in the published list of ILSVRC 2012
    assert find_rows(
        info("n01440764", "Goldfish", "golden_retriever", "toilet paper", "n02012849"), given, "imagenet"
    ) == ([0, 1, 207, 999, 134], [])
    with pytest.raises(UserError, match=r"'crane' of the data set imagefolder may be output 134 \(n02012849, .*517"):
        find_rows(info("crane", "goldfish"), given, "imagenet")


def test_every_folder_of_imagenet_has_its_own_output():
    timm = pytest.importorskip("timm")
    wnids = timm.data.ImageNetInfo().label_names()
    assert find_rows(info(*wnids), read_outputs("imagenet"), "imagenet") == (list(range(1000)), [])


def test_imagenet_needs_timm(without_timm):
    """Without it, the class crane, a bird, would be the machine."""
    for classes in (("n01443537", "tench"), ("crane", "goldfish")):
        with pytest.raises(UserError, match=r"TEACHER_CLASSES imagenet needs timm, .*; run: pip install timm"):
            find_outputs(info(*classes), "imagenet", {}, "")


def test_two_classes_of_one_output_are_refused():
    with pytest.raises(UserError, match=r"the classes 'tench' and 'Tinca' .* are both output 0 \(fish, tench\) in f"):
        find_rows(info("tench", "Tinca"), outputs(("fish", "tench", "tinca"), "other"), "f")


def test_two_classes_of_one_output_that_differ_in_case():
    with pytest.raises(UserError, match=r"the classes 'cat' and 'Cat' .* are both output 0 \(CAT\) in f"):
        find_rows(info("cat", "Cat"), outputs("CAT", "dog"), "f")


def test_missing_classes_are_named_and_counted(tmp_path):
    (tmp_path / "names.txt").write_text("a\nb\n")
    classes = info("a", *(f"c{number}" for number in range(7)))
    with pytest.raises(
        UserError, match=r"lacks 7 of the 8 classes .*: c0, c1, c2, c3, c4 and 2 more; name the out"
    ) as e:
        find_outputs(classes, str(tmp_path / "names.txt"), {}, "")
    assert len(str(e.value).splitlines()) == 1


def test_a_described_teacher_needs_no_key():
    assert find_outputs(info("a", "b"), "", {}, "t.pth") == (2, None)
    assert find_outputs(info("a", "b"), "", {"classes": ["a", "b"]}, "t.pth") == (2, None)
    assert find_outputs(info("a", "b"), "", {"classes": ["b", "x", "a"]}, "t.pth") == (3, [2, 0])
    with pytest.raises(UserError, match=r"on 2 classes, the data set imagefolder has 3;.*lacks b, c\)$"):
        find_outputs(info("a", "b", "c"), "", {"classes": ["a", "x"]}, "t.pth")
    with pytest.raises(UserError, match=r"knows class 1 as 'x', in the data set imagefolder it is 'b';.*lacks b\)$"):
        find_outputs(info("a", "b"), "", {"classes": ["a", "x"]}, "t.pth")


BAD_FILES = {
    "names that are there twice": (b"a\ncat\nb\ncat\n", "lines 2 and 4 of .* are both 'cat'; give each output a name"),
    "an empty line": (b"a\n\nb\n", "line 2 of .* is empty; expected imagenet, or a text file"),
    "an empty file": (b"\n", "is empty; expected imagenet"),
    "another encoding": ("caf\u00e9".encode("latin-1"), "cannot be read .it is not UTF-8 text.; expected"),
}


@pytest.mark.parametrize("fault", BAD_FILES)
def test_bad_files_are_one_line(fault, tmp_path):
    content, message = BAD_FILES[fault]
    (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_outputs(str(tmp_path / "names.txt"))
    assert str(error.value).startswith("DISTILLER.TEACHER_CLASSES: ") and len(str(error.value).splitlines()) == 1
