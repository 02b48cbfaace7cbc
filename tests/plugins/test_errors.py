"""Plug-ins that cannot work, collide with others, or change."""

from __future__ import annotations

import logging

import pytest

from mdistiller.distillers import Distiller, _plugins, distiller_dict, head_dict, register
from mdistiller.engine.cfg import load_cfg
from mdistiller.errors import UserError
from mdistiller.ranges import at_least
from tests.plugins.files import FORK, HEADED, write

# a test starts up to three processes, one after the other
pytestmark = [pytest.mark.usefixtures("registries_as_before"), pytest.mark.timeout(900)]

# --- what goes wrong


@pytest.mark.parametrize(
    ("content", "plugin", "message"),
    [
        (FORK, "gone.py", "PLUGINS: no file at gone.py; give it relative to"),
        (FORK, "gone_package.mine", "gone_package.mine cannot be imported .*No module named 'gone_package'"),
        (FORK, "3", "PLUGINS in the command line is 3; expected files and modules"),
        (FORK, "[3]", "PLUGINS in the command line is .3.; expected files and modules"),
        ("class Mine(\n", "mine.py", r"mine.py cannot be imported \(SyntaxError: .*mine.py, line 1"),
        ("\nfrom ._base import Distill\n", "mine.py", r"mine.py cannot be imported \(ImportError: .*mine.py line 2\)"),
        ("import sys\nsys.exit(3)\n", "mine.py", r"mine.py cannot be imported \(SystemExit: 3, .*mine.py line 2\)"),
        (
            FORK.replace("HintedKD", "AT"),
            "mine.py",
            "distiller 'AT' is defined twice, in .*AT.py and .*mine.py; rename",
        ),
        (
            FORK.replace("HintedKD", "FitNets").replace("FitNets(", "FITNET("),
            "mine.py",
            "'FITNET' .*FitNet.py and .*min",
        ),
        (
            FORK.replace("HintedKD", "Solver"),
            "mine.py",
            "distiller 'SOLVER' of .*mine.py has the name of a config sect",
        ),
        (
            FORK,
            "mine.py",
            "distiller HINTEDKD reads the config key LOSS, which nothing defines; .* default in .*mine.py",
        ),
        (
            FORK.replace("cfg.HINTEDKD", "cfg.HINTED_KD"),
            "mine.py",
            'the config section HINTED_KD, .*@register."HINTED_KD"',
        ),
        (
            FORK + "\nCFG = {'HINTEDKD': {'A': print}}\n",
            "mine.py",
            "mine.py: these defaults cannot be a config section",
        ),
    ],
)
def test_what_cannot_work_is_one_line(command, settings, content, plugin, message):
    write(settings, mine=content)
    status, _, err = command("train", "--cfg", "base.yaml", "PLUGINS", plugin, "DISTILLER.TYPE", "HINTEDKD")
    assert (status, err.count("\n")) == (2, 1), err
    assert err.startswith("error: ")
    with pytest.raises(UserError, match=message):
        raise UserError(err)
    assert not (settings / "output").exists()


def test_names_that_two_files_share(settings):
    write(settings / "a", hinted=FORK)
    write(settings / "b", hinted=FORK)
    write(settings / "c", KD=FORK)
    load_cfg(None, ["PLUGINS", "a/hinted.py"])
    load_cfg(None, ["PLUGINS", "[a/hinted.py, a/../a/hinted.py]"])  # loading a file again is no error
    with pytest.raises(UserError, match="PLUGINS: b/hinted.py has the name of .*a/hinted.py; rename one of them"):
        load_cfg(None, ["PLUGINS", "b/hinted.py"])
    with pytest.raises(UserError, match="PLUGINS: c/KD.py has the name of .*distillers/KD.py; rename one of them"):
        load_cfg(None, ["PLUGINS", "c/KD.py"])


def test_a_file_can_be_fixed_and_loaded_again(settings):
    write(settings, mine=HEADED + "\nraise RuntimeError('half way')\n")
    with pytest.raises(UserError, match="half way"):
        load_cfg(None, ["PLUGINS", "mine.py"])
    assert not {"HEADED"} & set(distiller_dict)
    assert not {"LINEAR"} & set(head_dict)
    write(settings, mine=HEADED)
    assert load_cfg(None, ["PLUGINS", "mine.py"]).HEADED.WEIGHT == 1.0


def test_an_entry_point_that_collides_costs_a_warning(settings, monkeypatch, caplog):
    write(settings / "site", collides=FORK.replace("HintedKD", "KD"))
    (settings / "site/collides-1.0.dist-info").mkdir()
    (settings / "site/collides-1.0.dist-info/METADATA").write_text("Name: collides\nVersion: 1.0\n")
    (settings / "site/collides-1.0.dist-info/entry_points.txt").write_text("[mdistiller.distillers]\nx = collides\n")
    monkeypatch.syspath_prepend(str(settings / "site"))
    before = dict(distiller_dict)
    with caplog.at_level(logging.WARNING, "mdistiller"):
        _plugins.load_installed()
    assert "left out: distiller 'KD' is defined twice, in " in caplog.text
    assert dict(distiller_dict) == before


@pytest.mark.parametrize(
    ("declared", "fault"),
    [
        ({"RANGES": {"WEIGTH": at_least(0)}}, "RANGES has WEIGTH, which DEFAULTS lacks"),
        ({"RANGES": {"WEIGHT": 3}}, "RANGES has 3 for WEIGHT; expected a range"),
        (
            {"teacher_needs": ("logit",)},
            r"teacher_needs is \('logit',\); expected a tuple of 'logits', 'pooled'",
        ),
        ({"teacher_needs": "logits"}, "teacher_needs is 'logits'; expected a tuple"),
        ({"DEFAULTS": 3}, "DEFAULTS is 3; expected a dictionary"),
    ],
)
def test_declarations_with_a_mistake(declared, fault):
    with pytest.raises(UserError, match=f"distiller DECLARED: {fault}"):
        register("DECLARED")(type("Declared", (Distiller,), {"DEFAULTS": {"WEIGHT": 1.0}, **declared}))
    assert "DECLARED" not in distiller_dict


def test_only_distillers_are_registered():
    with pytest.raises(UserError, match="distiller DECLARED: <class 'object'> is not a subclass of Distiller"):
        register("DECLARED")(object)
