"""The README cannot rot unnoticed: keys, files and configs that it names are those that there are."""

import re

from mdistiller.engine.cfg import CFG
from mdistiller.models import cifar_model_dict
from tests.conftest import REPO

README = (REPO / "README.md").read_text(encoding="utf-8")
TABLE = dict(re.findall(r"^\| (`[A-Z][^|]*`) \| ([^|]*) \|", README, flags=re.M))


def documented():
    """`{key: default as printed}` of the configuration tables; a row may hold several keys."""
    rows = {}
    for keys, defaults in TABLE.items():
        names = re.findall(r"`([A-Z_]+(?:\.[A-Z_0-9]+)*)`", keys)
        values = re.findall(r"`([^`]*)`", defaults)
        rows.update(zip(names, values if len(values) == len(names) else values * len(names)))
    return rows


def leaves(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def test_every_key_is_documented_with_its_default():
    expected = {key: f'"{default}"' if default == "" else str(default) for key, default in leaves(CFG)}
    assert documented() == expected


def test_files_and_configs_that_are_named_exist():
    named = re.findall(r"(?:configs|tools)/[\w/]+\.(?:yaml|py)", README) + re.findall(
        r"\]\((?!http)([\w/.]+)\)", README
    )
    assert len(named) > 10
    assert not [path for path in named if not (REPO / path).exists()]
    for pair in re.findall(r"\| `(\w+_\w+)` \|$", README, flags=re.M):
        assert (REPO / f"configs/cifar100/sfakd/{pair}.yaml").is_file(), pair


def test_every_model_is_named():
    assert not [name for name in cifar_model_dict if not re.search(rf"\b{name}\b", README)]
