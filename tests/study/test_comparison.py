"""Means, paired differences and verdicts, with values by hand."""

import pytest
from matplotlib.figure import Figure

from mdistiller.study.comparison import (
    Conditions,
    Difference,
    Group,
    Spread,
    conditions_of,
    difference,
    differences,
    groups,
    labels,
    paired,
    spread,
)
from mdistiller.study.grid import Row, Study
from mdistiller.study.plot import draw_panel, save_plot
from mdistiller.study.tables import markdown_tables, show_difference, show_spread


def summary(top1, teacher="t1", precision="float32", images="i1", train_images=9):
    return {
        "last": {"deployed_top1": top1, "deployed_top5": top1},
        "best": {"deployed_top1": top1 + 1, "deployed_top5": top1, "epoch": 3},
        "origin": {
            "teacher": teacher,
            "val_labels": "v",
            "val_content": "c",
            "train_content": images,
            "train_labels": "l",
        },
        "settings": {},
        "precision": precision,
        "train_images": train_images,
        "epoch_seconds": 10.0,
    }


def group(method, values, **more):
    runs = {seed: summary(value, **more) for seed, value in enumerate(values)}
    return Group(Row("p", "", method), conditions_of(runs[0]), runs, ())


def test_spread():
    assert spread([1.0, 2.0, 6.0]) == Spread(3.0, pytest.approx(7**0.5), 3)
    assert spread([4.0]) == Spread(4.0, None, 1)
    assert show_spread(spread([1.0, 2.0, 6.0])) == "3.00 ± 2.65"
    assert show_spread(spread([4.0])) == "4.00"


def test_the_interval_is_students():
    # mean 2, deviation 1, n 3; the 97.5 % quantile of t with 2 degrees of freedom is 4.302653
    result = paired("KD", [1.0, 2.0, 3.0])
    assert result.interval == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), abs=1e-5)
    assert show_difference(result) == "+2.00 (-0.48 to 4.48)"
    assert show_difference(Difference("KD", -1.55, (-3.1, -0.0025), 3)) == "-1.55 (-3.10 to -0.0025)"  # not -0.00


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([2.0, 2.1, 2.2], "helps"),
        ([-2.0, -2.1, -2.2], "hurts"),
        ([1.0, 2.0, 3.0], "no difference seen"),
        ([5.0, 5.1], "too few seeds"),
        ([5.0], "too few seeds"),
    ],
)
def test_verdicts(values, verdict):
    assert paired("KD", values).verdict == verdict


def test_seeds_are_paired():
    ours, theirs = group("SFAKD", [50.0, 60.0, 70.0]), group("KD", [49.0, 58.0, 67.0, 1.0])
    assert difference(ours, theirs) == Difference("KD", 2.0, pytest.approx((-0.48, 4.48), abs=0.01), 3)
    assert difference(ours, Group(ours.row, None, {}, ())) is None


def test_only_runs_with_the_same_teacher_are_paired():
    ours = group("SFAKD", [50.0, 60.0])
    assert difference(ours, group("student alone", [40.0, 40.0], teacher=None)).n == 2
    assert difference(ours, group("KD", [40.0, 40.0], teacher="t2")) is None
    assert difference(ours, group("KD", [40.0, 40.0], images="i2")) is None


def test_digests_of_different_kinds_do_not_hinder_a_comparison():
    ours = group("SFAKD", [50.0, 60.0], images="pixels: 1")
    assert difference(ours, group("KD", [40.0, 40.0], images="names and sizes: 2")).n == 2
    assert difference(ours, group("KD", [40.0, 40.0], images="pixels: 2")) is None


class Cell:
    def __init__(self, method, seed):
        self.row, self.seed, self.name = Row("p", "", method), seed, f"p/{method}/{seed}"


def test_other_conditions_are_not_averaged():
    cells = tuple(Cell(method, seed) for seed in (0, 1) for method in ("student alone", "KD"))
    study = Study("s", (), cells, ("student alone",), 1, True, (), ())
    summaries = {cell.name: summary(50.0 + cell.seed) for cell in cells}
    summaries["p/KD/1"] = summary(70.0, precision="bfloat16")
    found = groups(study, summaries)
    assert list(zip(labels(found), [list(g.summaries) for g in found])) == [
        ("student alone (float32)", [0, 1]),
        ("KD (float32)", [0]),
        ("KD (bfloat16)", [1]),
    ]
    assert differences(study, found) == {1: [Difference("student alone", 0.0, None, 1)]}
    del summaries["p/KD/0"], summaries["p/KD/1"]
    assert groups(study, summaries)[1:] == [Group(Row("p", "", "KD"), None, {}, (0, 1))]


def test_images_in_memory_and_streamed_ones_are_averaged():
    cells = tuple(Cell("KD", seed) for seed in (0, 1, 2))
    study = Study("s", (), cells, (), 1, True, (), ())
    summaries = {cell.name: summary(50.0 + cell.seed) for cell in cells}
    for seed, content in enumerate(("pixels: 1", "names and sizes: 2", "pixels: 3")):
        summaries[f"p/KD/{seed}"]["origin"]["val_content"] = content
    assert [list(each.summaries) for each in groups(study, summaries)] == [[0, 1], [2]]


def test_other_numbers_of_training_images_are_not_averaged():
    cells = tuple(Cell("KD", seed) for seed in (0, 1))
    study = Study("s", (), cells, (), 1, True, (), ())
    found = groups(study, {cell.name: summary(50.0, train_images=9 + cell.seed) for cell in cells})
    assert [list(each.summaries) for each in found] == [[0], [1]]


def test_other_training_images_are_not_averaged_unless_each_seed_draws_its_own():
    cells = tuple(Cell("KD", seed) for seed in (0, 1, 2))
    study = Study("s", (), cells, (), 1, True, (), ())
    summaries = {cell.name: summary(50.0, images=f"pixels: {cell.seed // 2}") for cell in cells}
    assert [list(each.summaries) for each in groups(study, summaries)] == [[0, 1], [2]]
    summaries["p/KD/0"]["origin"]["train_labels"] = "other"
    assert [list(each.summaries) for each in groups(study, summaries)] == [[0], [1], [2]]
    for run in summaries.values():
        run["settings"] = {"DATASET.TRAIN_FRACTION": 0.5, "DATASET.FRACTION_SEED": None}
    assert [list(each.summaries) for each in groups(study, summaries)] == [[0, 1, 2]]
    for run in summaries.values():
        run["settings"]["DATASET.FRACTION_SEED"] = 0
    assert len(groups(study, summaries)) == 3


def test_a_run_that_was_resumed_in_another_precision_is_not_averaged():
    cells = tuple(Cell("KD", seed) for seed in (0, 1))
    study = Study("s", (), cells, (), 1, True, (), ())
    summaries = {cell.name: {**summary(50.0, precision="bfloat16"), "processes": 1} for cell in cells}
    summaries["p/KD/1"]["earlier_machines"] = [
        {"hardware": "as an earlier version recorded it"},
        {"precision": "float32", "processes": 2},
        {"precision": "bfloat16", "processes": 2},
    ]
    assert labels(groups(study, summaries)) == [
        "KD (bfloat16, 1 process)",
        "KD (float32 then bfloat16, 2 then 1 processes)",
    ]


def test_runs_on_a_gpu_are_not_averaged_with_those_on_the_cpu():
    cells = tuple(Cell("KD", seed) for seed in (0, 1, 2))
    study = Study("s", (), cells, (), 1, True, (), ())
    devices = ("cpu", "cuda:0", "cuda:1")
    found = groups(study, {cell.name: {**summary(50.0), "device": devices[cell.seed]} for cell in cells})
    assert [list(each.summaries) for each in found] == [[0], [1, 2]]


def test_names_with_dollar_signs(tmp_path):
    runs = {0: {**summary(50.0), "teacher_accuracy": {}}}
    save_plot(tmp_path / "x.png", [Group(Row("$a_$", "", "from $1 to $\\x$"), conditions_of(runs[0]), runs, ())])
    assert (tmp_path / "x.png").is_file()


def test_a_teacher_has_one_line_in_the_plot():
    teachers = [("t1", 42.46), ("t1", 42.48), ("t1", 42.48), ("t2", 44.0)]
    found = []
    for number, (weights, top1) in enumerate(teachers):
        run = {**summary(50.0, teacher=weights), "teacher_accuracy": {"deployed_top1": top1}}
        found.append(Group(Row("p", "", f"m{number}"), conditions_of(run), {0: run}, ()))
    axes = Figure().subplots()
    draw_panel(axes, "p", found)
    assert sorted(text.get_text().strip() for text in axes.texts) == ["teacher 42.48", "teacher 44.00"]


def test_other_teachers_are_not_averaged():
    cells = tuple(Cell(method, seed) for seed in (0, 1) for method in ("student alone", "KD"))
    study = Study("s", (), cells, ("student alone",), 1, True, (), ())
    summaries = {cell.name: summary(50.0, teacher=None) for cell in cells if cell.row.method != "KD"}
    summaries.update({f"p/KD/{seed}": summary(51.0, teacher=f"abcdefgh{seed}") for seed in (0, 1)})
    found = groups(study, summaries)
    assert labels(found) == ["student alone", "KD (teacher abcdef)", "KD (teacher abcdef)"]
    assert [[each.n for each in row] for row in differences(study, found).values()] == [[1], [1]]


def test_a_table_of_several_teachers_and_odd_names():
    cells = tuple(Cell(method, seed) for seed in (0, 1) for method in ("student alone", "K|D"))
    study = Study("s", (), cells, ("K|D",), 1, True, (), ())
    more = {"deployed": {"parameters": 10**6, "macs": 10**6}, "num_classes": 3, "val_images": 9}
    more.update(epochs=1, teacher_accuracy={}, hardware="h", versions={"torch": "2"})
    summaries = {f"p/student alone/{seed}": {**summary(50.0, teacher=None), **more} for seed in (0, 1)}
    summaries.update({f"p/K|D/{seed}": {**summary(51.0 + seed, teacher=f"t{seed}"), **more} for seed in (0, 1)})
    found = groups(study, summaries)
    text = markdown_tables(study, found, differences(study, found), summaries, {})
    (row,) = (line for line in text.splitlines() if line.startswith("| student alone"))
    assert "| -1.00; -2.00 |" in row.replace("−", "-")
    assert "| K\\|D (teacher t0) | 1 (1 unfinished) |" in text or "| K\\|D (teacher t0) | 1 |" in text


def test_labels_name_what_differs():
    row = Row("p", "", "KD")
    one = Conditions("float32", "cpu", "1", 9, "l", "pixels: 777777777", "v", "pixels: 123456789", "t")
    for change, names in (
        ({"device": "cuda"}, ["KD (cpu)", "KD (cuda)"]),
        ({"processes": "2"}, ["KD (1 process)", "KD (2 processes)"]),
        ({"train_images": 1000}, ["KD (9 training images)", "KD (1,000 training images)"]),
        ({"processes": "2 then 1"}, ["KD (1 process)", "KD (2 then 1 processes)"]),
        ({"train_content": "pixels: 88"}, ["KD (training images 777777)", "KD (training images 88)"]),
        ({"train_labels": "m"}, ["KD (labels l)", "KD (labels m)"]),
        ({"val_content": "pixels: abcdefghi"}, ["KD (validation images 123456)", "KD (validation images abcdef)"]),
        ({"precision": "bfloat16", "teacher": "u"}, ["KD (float32, teacher t)", "KD (bfloat16, teacher u)"]),
    ):
        assert labels([Group(row, each, {}, ()) for each in (one, one._replace(**change))]) == names
