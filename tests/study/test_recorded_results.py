"""The recorded results of the shipped studies: they belong to the studies, and the documents show their figures."""

import csv
import json
import re
from functools import lru_cache
from pathlib import Path

import pytest
import yaml

from mdistiller.engine.cfg import leaves
from mdistiller.study.comparison import differences, groups, spread
from mdistiller.study.elsewhere import finished_elsewhere
from mdistiller.study.grid import read_study
from mdistiller.study.tables import markdown_tables, show_spread
from mdistiller.study.validation_images import ValidationImages
from tests.processes import REPO

RECORDED = sorted((REPO / "configs/studies/results").glob("*.jsonl"))
COLUMNS = {  # of the documents, with the name of the column in results.md
    "seeds": "seeds",
    "last epoch": "top-1, last epoch",
    "each seed": "each seed",
    "probe": "bare student's probe",
    "best epoch": "top-1, best epoch",
    "against the student alone": "against student alone",
    "against KD": "against KD",
    "against SFAKD": "against SFAKD",
    "parameters": "parameters",
    "MACs": "MACs",
}
SECTIONS = [  # of docs/results.md, with the study, and the pairs of its tables in their order
    ("Measured: a teacher with five times as many images", "main", ["vgg13_vgg8", "wrn40_2_wrn_16_2"]),
    ("Measured: all images, on a GPU", "all_images", ["vgg13_vgg8", "res32x4_res8x4"]),
    ("Measured: parts of SFAKD", "sfakd_parts", ["vgg13_vgg8"]),
]
PAIRS = {
    "VGG13 → VGG8": "vgg13_vgg8",
    "WRN-40-2 → WRN-16-2": "wrn40_2_wrn_16_2",
    "ResNet32x4 → ResNet8x4": "res32x4_res8x4",
}
STUDIES = {"10,000": "main", "50,000": "all_images"}


@lru_cache(maxsize=None)
def recorded(name):
    """The study of that name, and the recorded results that it uses."""
    study = read_study(f"studies/{name}", ["DATASET.ROOT", "gone"])
    return study, finished_elsewhere(study, Path("nowhere"), ValidationImages())


def tables(text):
    """The rows of each Markdown table, as dicts by the names of the columns."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        header, _, *rows = ([cell.strip() for cell in line.strip("|\n").split("|")] for line in block.splitlines())
        found.append([dict(zip(header, row)) for row in rows])
    return found


@lru_cache(maxsize=None)
def results(name):
    """The rows of a study's results.md, by pair and method."""
    study, summaries = recorded(name)
    found = groups(study, summaries)
    text = markdown_tables(study, found, differences(study, found), summaries, {})
    pairs = re.findall(r"^## (.+)$", text, flags=re.MULTILINE)
    return {pair: {row["method"]: row for row in rows} for pair, rows in zip(pairs, tables(text))}


def settings_of_row(name, method):
    """The settings of a method in the file of a study, as the documents show them; the config of another form."""
    if method == "student alone":
        return ""
    entry = dict(yaml.safe_load((REPO / f"configs/studies/{name}.yaml").read_text(encoding="utf-8"))["METHODS"][method])
    base, _ = entry.pop("_BASE_"), entry.pop("SEEDS", None)
    shown = [f"`{key} {value}`" for key, value in leaves(entry)]
    return ", ".join(shown) or ("" if base.split("/")[1] in ("kd", "sfakd") else f"`{base.split('/')[1]}/`")


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_every_recorded_run_belongs_to_its_study(path):
    names = [json.loads(line)["name"] for line in path.read_text(encoding="utf-8").splitlines()]
    _, used = recorded(path.stem)
    assert len(names) == len(set(names))
    assert set(names) <= set(used)


@pytest.mark.parametrize(("section", "name", "pairs"), SECTIONS, ids=lambda value: value if "_" in value else None)
def test_the_tables_of_the_documents(section, name, pairs):
    text = (REPO / "docs/results.md").read_text(encoding="utf-8")
    part = re.search(rf"^## {re.escape(section)}\n(.*?)(?=^## )", text, flags=re.MULTILINE | re.DOTALL)
    shown = tables(part.group(1))
    assert len(shown) == len(pairs)
    for pair, rows in zip(pairs, shown):
        finished = {method for method, row in results(name)[pair].items() if row["each seed"]}
        assert len(rows) == len({row["method"] for row in rows})
        assert {row["method"] for row in rows} == finished
        for row in rows:
            expected = results(name)[pair][row["method"]]
            seeds, _, _ = expected["seeds"].partition(" (")  # without the unfinished ones
            for column, value in row.items():
                if column == "settings":
                    assert value == settings_of_row(name, row["method"])
                elif column != "method":
                    assert value.replace("−", "-") == {**expected, "seeds": seeds}[COLUMNS[column]], (row, column)


def test_the_table_of_the_readme():
    text = (REPO / "README.md").read_text(encoding="utf-8")
    (table,) = (rows for rows in tables(text) if "images" in rows[0] and "SFAKD" in rows[0])
    for row in table:
        name, pair = STUDIES[row["images"]], PAIRS[row["teacher → student"]]
        study, summaries = recorded(name)
        for method in ("student alone", "KD", "DKD", "SimKD", "SFAKD"):
            last = [
                summaries[cell.name]["last"]["deployed_top1"]
                for cell in study.cells
                if cell.name in summaries and (cell.row.pair, cell.row.method) == (pair, method)
            ]
            assert row[method] == (f"{sum(last) / len(last):.1f}" if last else "–"), (row, method)


def test_the_table_of_fewer_images():
    text = (REPO / "docs/results.md").read_text(encoding="utf-8")
    (table,) = (rows for rows in tables(text) if "SFAKD against KD" in rows[0])
    study, summaries = recorded("fraction")
    assert len(table) == len({cell.row.variant for cell in study.cells})
    for row in table:
        runs = {
            cell.row.method: summaries[cell.name]
            for cell in study.cells
            if cell.name.endswith("/seed0") and f"{summaries[cell.name]['train_images']:,}" == row["images"]
        }
        last = {method: run["last"]["deployed_top1"] for method, run in runs.items()}
        assert {method: row[method] for method in last} == {method: f"{top1:.2f}" for method, top1 in last.items()}
        assert row["SFAKD against KD"] == f"{last['SFAKD'] - last['KD']:+.2f}"
        assert {str(run["epochs"]) for run in runs.values()} == {row["epochs"]}


def test_the_table_of_2500_images():
    (table,) = (rows for rows in tables((REPO / "docs/results.md").read_text("utf-8")) if "2,500 images" in rows[0])
    expected = results("fraction")["vgg13_vgg8, 25 %"]
    assert [row["2,500 images"] for row in table] == list(expected)
    for row in table:
        method = row.pop("2,500 images")
        for column, value in row.items():
            assert value.replace("−", "-") == expected[method][COLUMNS[column]], (method, column)


def test_the_table_of_precise_bn():
    with (REPO / "configs/studies/results/precise_bn_epochs.csv").open(encoding="utf-8") as file:
        recorded_epochs = list(csv.DictReader(file))
    (table,) = (rows for rows in tables((REPO / "docs/results.md").read_text(encoding="utf-8")) if "12" in rows[0])
    assert len(table) == 4
    for row in table:
        method, _, kind = row.pop("epoch (measured)").partition(", ")
        key = {"running": "running_top1", "re-estimated": "re_estimated_top1"}[kind]
        for epoch, value in row.items():
            values = [float(e[key]) for e in recorded_epochs if (e["method"], e["epoch"]) == (method, epoch)]
            assert value == show_spread(spread(values)) and len(values) == 3, (method, kind, epoch)
