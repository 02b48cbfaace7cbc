"""Only shipped files are found outside the working directory; `~` and variables are expanded, or are errors."""

from pathlib import Path

import pytest

from mdistiller import paths
from mdistiller.errors import UserError
from tests.conftest import REPO

TEACHER = "download_ckpts/demo/wrn_16_2.pth"


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A clone that also contains files of its user, who works in another folder."""
    clone = tmp_path / "clone"
    shipped = (TEACHER, "configs/demo/sfakd.yaml", "data/fashion-mnist-part/a.png")
    for name in (*shipped, "data/mine/a.png", "output/t.pth", "output/t.yaml", "setup.py"):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).touch()
    monkeypatch.setattr(paths, "SHIPPED", clone)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return clone


@pytest.mark.parametrize("name", [TEACHER, f"./{TEACHER}", "data/fashion-mnist-part", "configs/demo/sfakd.yaml"])
def test_shipped_files_are_found_from_anywhere(clone, name):
    assert paths.find_file(name) == clone / name


@pytest.mark.parametrize(
    "name", ["output/t.pth", "data/mine", "data", "configs/../output/t.pth", "download_ckpts", "setup.py", "."]
)
def test_nothing_else_is_taken_from_the_clone(clone, name):
    assert paths.find_file(name) == Path(name)


def test_the_working_directory_comes_first(clone):
    Path(TEACHER).parent.mkdir(parents=True)
    Path(TEACHER).touch()
    assert paths.find_file(TEACHER) == Path(TEACHER)
    Path("demo").mkdir()
    Path("demo/sfakd.yaml").touch()
    assert paths.find_config("demo/sfakd") == paths.find_config("demo/sfakd.yaml") == Path("demo/sfakd.yaml")


@pytest.mark.parametrize("name", ["demo/sfakd", "demo/sfakd.yaml", "configs/demo/sfakd", "configs/demo/sfakd.yaml"])
def test_shipped_configurations_have_names(clone, name):
    assert paths.find_config(name) == clone / "configs/demo/sfakd.yaml"


@pytest.mark.parametrize("name", ["demo", "../output/t", "/demo/sfakd", "demo/other"])
def test_other_paths_are_returned_as_given(clone, name):
    assert paths.find_config(name) == Path(name)


def test_every_shipped_configuration_is_found_by_its_name():
    names = list(paths.shipped_configs())
    assert {"demo/sfakd", "cifar100/sfakd/res32x4_res8x4"} <= set(names)
    assert [paths.find_config(name) for name in names] == [REPO / f"configs/{name}.yaml" for name in names]


def test_folders_are_those_of_the_working_directory_unless_a_variable_names_others(clone, monkeypatch):
    for variable, root, folder in (
        ("MDISTILLER_DATA", paths.data_root, "data"),
        ("MDISTILLER_CKPTS", paths.ckpt_root, "download_ckpts"),
    ):
        monkeypatch.setenv("SCRATCH", "/scratch")
        monkeypatch.setenv(variable, "$SCRATCH/here")
        assert root() == Path("/scratch/here")
        monkeypatch.delenv(variable)
        assert root() == Path.cwd() / folder


@pytest.mark.parametrize("given", ["~/sets", "$HOME/sets", "${HOME}/sets", "$BASE/sets"])
def test_home_and_variables_are_expanded(monkeypatch, given):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("BASE", "~")
    assert paths.user_path(given) == paths.find_file(given) == Path("/home/me/sets")


@pytest.mark.parametrize("given", ["$NOT_SET/sets", "${NOT_SET}/sets", "a/$NOT_SET", "$EMPTY/sets"])
def test_a_variable_that_is_not_set_is_an_error(monkeypatch, given):
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("NOT_SET", raising=False)
    with pytest.raises(UserError, match=r"names the environment variable (NOT_SET|EMPTY), which is not set"):
        paths.user_path(given)


def test_a_path_that_means_the_same_anywhere(clone, monkeypatch):
    assert paths.portable_path("mine/teacher.pth") == str(Path.cwd() / "mine/teacher.pth")
    assert paths.portable_path(TEACHER) == TEACHER
    monkeypatch.chdir(clone)
    assert paths.portable_path(TEACHER) == paths.portable_path(clone / TEACHER) == TEACHER
    assert paths.portable_path("data/mine") == str(clone / "data/mine")


def test_names_with_a_dollar_that_exist_are_taken_as_they_stand(monkeypatch, tmp_path):
    monkeypatch.delenv("NOT_SET", raising=False)
    (tmp_path / "a$NOT_SET").mkdir()
    assert paths.find_file("a$NOT_SET") == Path("a$NOT_SET")
    assert paths.user_path(tmp_path / "b$NOT_SET") == tmp_path / "b$NOT_SET"  # a Path is not expanded
