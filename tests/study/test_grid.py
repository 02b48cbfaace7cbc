"""From a study's file to the configurations of its runs."""

import pytest
import yaml

from mdistiller.errors import UserError
from mdistiller.study.grid import Row, read_study

TWO = {
    "PAIRS": {"a": {"TEACHER": "vgg13", "STUDENT": "vgg8"}, "b": {"TEACHER": "wrn_40_2", "STUDENT": "wrn_16_2"}},
    "TEACHER": {"_BASE_": "cifar100/vanilla/{teacher}"},
    "ALONE": {"_BASE_": "cifar100/vanilla/{student}"},
    "METHODS": {
        "KD": {"_BASE_": "cifar100/kd/vgg13_vgg8", "SEEDS": [1]},
        "hot": {"_BASE_": "cifar100/kd/vgg13_vgg8", "KD": {"TEMPERATURE": 9.0}, "SOLVER": {"LR": 0.5}},
    },
    "SEEDS": [0, 1],
}


@pytest.fixture
def study(tmp_path):
    def make(overrides=(), **changes):
        content = {**TWO, **changes}
        (tmp_path / "s.yaml").write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))
        return read_study("s.yaml", overrides)

    return make


def test_the_order_of_the_runs(study):
    names = [cell.name for cell in study().cells]
    first = [f"{pair}/{method}/seed0" for pair in "ab" for method in ("student_alone", "hot")]
    assert names == [*first, *(f"{p}/{m}/seed1" for p in "ab" for m in ("student_alone", "KD", "hot"))]
    assert [cell.name for cell in study().teachers] == ["vgg13/seed0", "wrn_40_2/seed0"]
    assert study().rows()[:3] == [Row("a", "", "student alone"), Row("a", "", "hot"), Row("a", "", "KD")]


def test_models_and_teachers_are_those_of_the_pair(study):
    cells = {cell.name: cell for cell in study().cells}
    kd = cells["b/hot/seed0"]
    assert (kd.cfg.DISTILLER.TYPE, kd.cfg.DISTILLER.TEACHER, kd.cfg.DISTILLER.STUDENT) == ("KD", "wrn_40_2", "wrn_16_2")
    assert (kd.teacher, cells["b/student_alone/seed0"].teacher) == ("wrn_40_2/seed0", "")
    alone = cells["a/student_alone/seed1"].cfg
    assert (alone.DISTILLER.TYPE, alone.DISTILLER.STUDENT, alone.EXPERIMENT.SEED) == ("NONE", "vgg8", 1)
    assert study(TEACHER=None).cells[1].teacher == ""


@pytest.mark.parametrize(
    "key, value",
    [
        ("EXPERIMENT.SEED", 9),
        ("EXPERIMENT.NAME", "run"),
        ("DISTILLER.TEACHER", "wrn_16_2"),
        ("DISTILLER.STUDENT", "resnet8"),
        ("DISTILLER.TEACHER_WEIGHTS", "other.pth"),
        ("LOG.PREFIX", "elsewhere"),
    ],
)
@pytest.mark.parametrize("place", ["overrides", "SETTINGS", "VARIANTS", "METHODS"])
def test_what_the_grid_decides_is_given_nowhere_else(study, place, key, value):
    section, name = key.split(".")
    settings = {section: {name: value}}
    given = {
        "overrides": {"overrides": [key, str(value)]},
        "SETTINGS": {"SETTINGS": settings},
        "VARIANTS": {"VARIANTS": {"": settings}},
        "METHODS": {"METHODS": {"KD": {"_BASE_": "cifar100/kd/vgg13_vgg8", **settings}}},
    }[place]
    with pytest.raises(UserError) as caught:
        study(**given)
    assert f"{key} is {value}, but a study sets it from PAIRS, TEACHER, METHODS, SEEDS and --output" in str(
        caught.value
    )


def test_the_student_alone_is_trained_alone(study):
    with pytest.raises(UserError, match="DISTILLER.TYPE is KD, but a study sets it"):
        study(["DISTILLER.TYPE", "KD"])


def test_weights_and_biases_may_be_switched_on(study):
    assert study(["LOG.WANDB", "True"]).cells[0].cfg.LOG.WANDB
    assert study(SETTINGS={"LOG": {"WANDB": True}}).cells[0].cfg.LOG.WANDB


def test_which_settings_win(study):
    variants = {"short": {"SOLVER": {"WEIGHT_DECAY": 0.3, "EPOCHS": 230}}}
    settings = {"SOLVER": {"LR": 0.7, "EPOCHS": 220, "WEIGHT_DECAY": 0.2, "MOMENTUM": 0.8}}
    made = study(["SOLVER.EPOCHS", "240"], SETTINGS=settings, VARIANTS=variants)
    alone, hot = (cell.cfg.SOLVER for cell in made.cells[:2])
    assert (alone.LR, hot.LR) == (0.7, 0.5)  # a method's own value wins over SETTINGS
    assert (hot.WEIGHT_DECAY, hot.MOMENTUM, hot.EPOCHS) == (0.3, 0.8, 240)
    assert made.cells[0].name == "a/short/student_alone/seed0"
    assert made.teachers[0].cfg.SOLVER.WEIGHT_DECAY == 0.2  # variants are not for teachers
    assert {cell.cfg.LOG.WANDB for cell in made.all_cells()} == {False}


def test_folders_have_plain_names(study):
    made = study(METHODS={"a/b, 50 %": {}})
    assert made.cells[1].name == "a/a_b_50_/seed0"
    with pytest.raises(UserError, match=r"two rows would have the folder a/x_y; rename one"):
        study(METHODS={"x y": {}, "x_y": {}})
    with pytest.raises(UserError, match=r"two rows would have the folder a/kd; rename one"):  # of some file systems
        study(METHODS={"KD": {}, "kd": {}})


def test_a_base_beside_the_study(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/hot.yaml").write_text("_BASE_: cifar100/kd/vgg13_vgg8\nKD: {TEMPERATURE: 9.0}\n")
    (tmp_path / "mine/s.yaml").write_text(yaml.safe_dump({**TWO, "METHODS": {"hot": {"_BASE_": "hot.yaml"}}}))
    assert read_study("mine/s.yaml").cells[1].cfg.KD.TEMPERATURE == 9.0


def test_an_error_is_told_once(study):
    with pytest.raises(UserError) as caught:
        study(["SOLVER.LR", "-1"], SETTINGS={"SOLVER": {"EPOCH": 3}})
    assert caught.value.faults[0].startswith("unknown config key SOLVER.EPOCH in ")
    assert caught.value.faults[0].endswith(" (in the run vgg13/seed0 and 11 more)")
    with pytest.raises(UserError, match=r"SOLVER.LR is -1.0; expected .* \(in the run vgg13/seed0 and 11 more\)"):
        study(["SOLVER.LR", "-1"])


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"METHODS": None}, "METHODS is missing; a study has at least PAIRS, ALONE, METHODS"),
        ({"PAIRS": {}}, "PAIRS is missing"),
        ({"SEED": [1]}, "unknown key SEED; did you mean SEEDS?"),
        ({"SEEDS": 3}, "SEEDS is 3; expected a list"),
        ({"SEEDS": []}, "SEEDS is []; expected different whole numbers"),
        ({"SEEDS": [0, 0]}, "SEEDS is [0, 0]; expected different"),
        ({"SEEDS": [-1]}, "SEEDS is [-1]; expected"),
        ({"SEEDS": [True]}, "SEEDS is [True]; expected"),
        ({"METHODS": {"KD": 3}}, "METHODS: KD is 3; expected settings"),
        ({"METHODS": {"KD": {"SEEDS": ["a"]}}}, "METHODS: KD: SEEDS is ['a']; expected"),
        ({"TEACHER": {"SEEDS": [1]}}, "TEACHER has SEEDS, but teachers are trained with seed 0"),
        ({"METHODS": {3: {}}}, "METHODS: the name 3 is not text"),
        ({"METHODS": {"student alone": {}}}, "METHODS has 'student alone', which is a row of every study"),
        ({"METHODS": {"KD": {"_BASE_": "cifar100/kd/{paar}"}}}, "cifar100/kd/{paar}"),
        ({"METHODS": {"KD": {"DISTILLER": {"TYPE": "KDD"}}}}, "KDD"),
        ({"PAIRS": {"a": {"TEACHER": "vgg13"}}}, "PAIRS: a is {'TEACHER': 'vgg13'}; expected {TEACHER: model, STUDENT"),
        ({"PAIRS": {"a": {"TEACHER": "vgg13", "STUDENT": "vgg88"}}}, "vgg88"),
        ({"VARIANTS": {}}, "VARIANTS is empty; leave it out"),
        ({"THREADS": 0}, "THREADS is 0; expected 1 to 256"),
        ({"THREADS": 5000}, "THREADS is 5000; expected 1 to 256"),
        ({"SUMMARIES": "main.jsonl"}, "SUMMARIES is 'main.jsonl'; expected a list"),
        ({"SUMMARIES": [1]}, "SUMMARIES has 1; expected file names"),
        ({"SHARE": [1]}, "SHARE has 1; expected names of studies"),
        ({"THREADS": "1"}, "THREADS is '1'; expected a whole number"),
        ({"COMPARE_TO": ["KDD"]}, "COMPARE_TO names 'KDD', which is not a method; did you mean KD?"),
        ({"METHODS": {"KD": {"DISTILLER": "KD"}}}, "DISTILLER is 'KD'; expected a section, such as DISTILLER: {KEY:"),
        ({"SETTINGS": {"LOG": "text"}}, "LOG is 'text'; expected a section"),
        ({"SETTINGS": {"SOLVER": 3}}, "SOLVER in s.yaml is a section, given 3"),
    ],
)
def test_bad_studies(study, changes, line):
    with pytest.raises(UserError) as caught:
        study(**changes)
    assert line in str(caught.value)
    assert len(caught.value.faults) == 1


def test_shipped_studies_are_valid():
    from mdistiller.paths import SHIPPED

    for file in sorted((SHIPPED / "configs/studies").glob("*.yaml")):
        assert read_study(str(file)).cells
