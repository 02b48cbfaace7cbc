"""The README: short, and in step with the code, the configs and the demo."""

import re

from mdistiller.benchmark import methods
from mdistiller.distillers import distiller_dict
from tests.conftest import REPO

README = (REPO / "README.md").read_text(encoding="utf-8")
MAX_LINES = 250


def section(title):
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_it_is_short():
    assert README.count("\n") <= MAX_LINES


def test_the_two_commands_do_all_the_set_up():
    commands = re.findall(r"^pip install .*$", section("Set-up and demo"), flags=re.M)
    assert commands == [
        "pip install -r requirements.txt && python3 tools/train.py --cfg configs/demo/sfakd.yaml",
        'pip install -r requirements.txt -e ".[test]" && python3 -m pytest -n 3 --dist worksteal',
    ]


def test_every_method_is_listed_with_its_paper_and_its_configs():
    rows = re.findall(r"^\| ([\w, -]+?)(?: \(`.+`\))? \| (.+) \| (\[.*) \|$", section("Methods"), flags=re.M)
    listed = {name: paper for names, paper, _ in rows for name in names.split(", ")}
    named = {method.name: method.paper for method in methods.choose([]) if method.paper}
    own_names = ("hard cut after the idea of FAM",)  # a setting of SFAKD, in docs/speed.md and docs/results.md
    assert {name: paper for name, paper in named.items() if name not in own_names} == {
        name: paper for name, paper in listed.items() if name != "TTM"
    }
    assert len(listed) > 20 and len(distiller_dict) > 20
    folders = {folder for *_, links in rows for folder in re.findall(r"\(configs/cifar100/(\w+)\)", links)}
    assert folders == {folder.name for folder in (REPO / "configs/cifar100").iterdir()} - {"vanilla"}


def test_every_published_pair_has_a_config():
    pairs = re.findall(r"\| `(\w+_\w+)` \|$", section("Results"), flags=re.M)
    assert len(pairs) == 10
    for pair in [*pairs, "res32x4_mv2", "res32x4_shuv2"]:  # these two are in docs/results.md
        assert (REPO / f"configs/cifar100/sfakd/{pair}.yaml").is_file(), pair
