"""The shipped configurations are as published, and a difference of any kind is found."""

import re
import shutil

import pytest
import yaml

from tests.conftest import REPO

PAIR = "cifar100/cat_kd/res32x4_res8x4.yaml"
OURS = "cifar100/wttm/res50_mv2.yaml"


def test_every_shipped_configuration_is_as_published(command):
    status, out, err = command("check_configs")
    assert (status, err) == (0, "")
    *lines, last = out.splitlines()
    runs = [path for path in (REPO / "configs").rglob("*.yaml") if not {"_base_", "studies"} & set(path.parts)]
    assert len(lines) == len(runs)
    assert last.endswith(" 0 differences")


@pytest.fixture
def copy(tmp_path):
    """Copies of two of the methods' configurations, and of their part of the table."""
    for folder in ("_base_", "cifar100/cat_kd", "cifar100/wttm"):
        shutil.copytree(REPO / "configs" / folder, tmp_path / "configs" / folder)
    table = yaml.safe_load((REPO / "tools/published_values.yaml").read_text(encoding="utf-8"))
    table["groups"] = [group for group in table["groups"] if group["path"].split("/")[1] in ("cat_kd", "wttm")]
    write_table(tmp_path, table)
    return tmp_path


def write_table(place, table):
    (place / "table.yaml").write_text(yaml.safe_dump(table), encoding="utf-8")


def check(command, place, *options):
    return command("check_configs", "--configs", place / "configs", "--table", place / "table.yaml", *options)


def edit(file, old, new):
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


def test_all_values_are_printed_on_request(command, copy):
    status, out, _ = check(command, copy, "--values")
    assert status == 0
    assert "  CAT_KD.LOSS.CAT_WEIGHT: published 15.0, here 15.0, ok" in out
    assert "  SOLVER.LR_DECAY_STAGES: published [150, 180, 210], here [150, 180, 210], ok" in out


@pytest.mark.parametrize(
    ("file", "old", "new", "row", "count"),
    [
        (PAIR, "CAT_WEIGHT: 15.0", "CAT_WEIGHT: 400.0", "CAT_KD.LOSS.CAT_WEIGHT: published 15.0, here 400.0", 1),
        (PAIR, "  NORMALIZE: False\n", "", "CAT_KD.NORMALIZE: published False, here True", 1),
        (PAIR, "STUDENT: resnet8x4", "STUDENT: resnet8", "DISTILLER.STUDENT: published resnet8x4, here resnet8", 1),
        ("_base_/cifar100.yaml", "EPOCHS: 240", "EPOCHS: 200", "SOLVER.EPOCHS: published 240, here 200", 15),
        ("_base_/cifar100_mobile.yaml", "LR: 0.01", "LR: 0.05", "SOLVER.LR: published 0.01, here 0.05", 6),
        (
            "_base_/cifar100_mobile.yaml",
            "LR: 0.01",
            "LR: 0.01\n  SYNC_BN: False",
            "SOLVER.SYNC_BN: published not listed (by default True), here False",
            6,
        ),
        (OURS, "STUDENT: MobileNetV2", "STUDENT: vgg8", "DISTILLER.STUDENT: published MobileNetV2, here vgg8", 1),
    ],
    ids=["weight", "switch left out", "student", "epochs of a base", "rate of a base", "unlisted key", "pair of ours"],
)
def test_a_changed_value_is_found(command, copy, file, old, new, row, count):
    edit(copy / "configs" / file, old, new)
    status, out, _ = check(command, copy)
    assert status == 1
    assert out.count(f"  {row}, DIFFERS\n") == count
    assert out.splitlines()[-1].endswith(f", {count} differences")


def test_values_that_are_ours_are_free(command, copy):
    with (copy / "configs" / OURS).open("a", encoding="utf-8") as file:
        file.write("WTTM:\n  TEMPERATURE: 8.0\n")
    status, out, _ = check(command, copy)
    assert status == 0
    assert re.search(rf"{OURS}: ok, \d+ values \(ours: the authors publish values of vgg13_vgg8 alone\)", out)


def test_a_configuration_that_the_table_does_not_list(command, copy):
    shutil.copy(copy / "configs" / PAIR, copy / "configs/cifar100/cat_kd/res32x4_vgg8.yaml")
    status, out, _ = check(command, copy)
    assert status == 1
    assert "cifar100/cat_kd/res32x4_vgg8.yaml: NOT LISTED" in out
    assert out.splitlines()[-1].endswith(", 1 differences")


def test_a_configuration_that_is_gone(command, copy):
    (copy / "configs" / PAIR).unlink()
    status, out, _ = check(command, copy)
    assert status == 1
    assert f"{PAIR}: MISSING" in out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table["groups"].append(table["groups"][0]), "two entries for cifar100/cat_kd/"),
        (lambda table: table["groups"][0].update(source="catkdd"), "refers to 'catkdd', which it does not define"),
        (lambda table: table["groups"][0].update(schedule="cifar"), "refers to 'cifar', which it does not define"),
        (
            lambda table: table["groups"][0]["values"].update({"CAT_KD.NORMALISE": True}),
            "unknown key CAT_KD.NORMALISE of cifar100/cat_kd/.*; did you mean CAT_KD.NORMALIZE",
        ),
        (lambda table: table.pop("groups"), "refers to 'groups', which it does not define"),
    ],
    ids=["two entries", "source", "schedule", "key", "no groups"],
)
def test_a_table_with_a_fault(command, copy, change, message):
    table = yaml.safe_load((copy / "table.yaml").read_text(encoding="utf-8"))
    change(table)
    write_table(copy, table)
    status, _, err = check(command, copy)
    assert status == 2
    assert re.search(message, err)
    assert err.count("\n") == 1


def test_a_table_or_folder_that_cannot_be_read(command, copy):
    status, _, err = command("check_configs", "--table", "no.yaml")
    assert (status, err.count("\n")) == (2, 1)
    assert "table no.yaml cannot be read" in err
    (copy / "table.yaml").write_text("- 1\n", encoding="utf-8")
    assert "holds a list" in check(command, copy)[2]
    assert "is not a folder" in command("check_configs", "--configs", "none")[2]
