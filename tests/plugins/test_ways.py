"""Distillers of users: pasted into the package, named in a configuration, installed; their defaults and heads."""

from __future__ import annotations

import os
import shutil
import sys

import pytest

from mdistiller.distillers import distiller_dict
from mdistiller.engine.build import build_trainer
from mdistiller.engine.cfg import CFG, dump, load_cfg
from mdistiller.engine.checkpoint import read_checkpoint
from mdistiller.errors import UserError
from tests.conftest import REPO
from tests.plugins.files import FORK, FORK_CFG, FORK_YAML, HEADED, losses_of, process, write

# a test starts up to three processes, one after the other
pytestmark = [pytest.mark.usefixtures("registries_as_before"), pytest.mark.timeout(900)]


# --- the three ways


def test_pasted_into_the_package(settings):
    clone = settings / "clone"
    shutil.copytree(REPO / "mdistiller", clone / "mdistiller", ignore=shutil.ignore_patterns("__pycache__"))
    write(clone / "mdistiller/distillers", HintedKD=FORK)
    write(settings, x_yaml="_BASE_: base.yaml\nDISTILLER: {TYPE: HINTEDKD}\n" + FORK_YAML)
    status, out, err = process([clone], REPO / "tools/train.py", "--cfg", "x.yaml")
    assert (status, err) == (0, "")
    assert "HINTEDKD: student resnet8" in out
    assert losses_of()[-1]["loss_feat"] > 0
    # a second file of that name is refused, by the name of both
    write(clone / "mdistiller/distillers", Twice=FORK)
    status, out, err = process([clone], REPO / "tools/train.py", "--cfg", "x.yaml", "--overwrite")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "error: distiller 'HintedKD' is defined twice, in " in err
    assert "distillers/HintedKD.py and " in err
    assert "distillers/Twice.py; rename one of them" in err
    write(clone / "mdistiller/distillers", Twice="import a_package_that_is_not_there\n")
    status, out, err = process([clone], REPO / "tools/train.py", "--cfg", "x.yaml", "--overwrite")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "error: mdistiller/distillers/Twice.py cannot be imported (ModuleNotFoundError: No module named" in err


def test_installed_with_an_entry_point(settings):
    site = settings / "site"
    write(site / "my_package", __init__="", hinted=FORK + FORK_CFG, broken="import a_package_that_is_not_there\n")
    (site / "my_package-1.0.dist-info").mkdir()
    (site / "my_package-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (site / "my_package-1.0.dist-info/entry_points.txt").write_text(
        "[mdistiller.distillers]\nhinted = my_package.hinted\nbroken = my_package.broken\n"
    )
    write(settings, x_yaml="_BASE_: base.yaml\nDISTILLER: {TYPE: HintedKD}\nHintedKD: {TEMPERATURE: 3}\n")
    status, out, err = process([REPO, site], REPO / "tools/train.py", "--cfg", "x.yaml", "SOLVER.EPOCHS", "1")
    assert (status, err) == (0, "")
    warning = [line for line in out.splitlines() if "left out" in line]
    assert warning == [
        "installed distillers left out: my_package.broken cannot be imported (ModuleNotFoundError: No module named"
        f" 'a_package_that_is_not_there', {site}/my_package/broken.py line 1); fix it, or uninstall it"
    ]
    assert losses_of()[-1]["loss_feat"] > 0


@pytest.mark.parametrize(
    ("folder", "plugin"),
    [
        ("configs/plug", "plug/hinted.py"),  # relative to the configuration
        ("elsewhere", "elsewhere/hinted.py"),  # relative to the working directory
        ("my_package", "my_package.hinted"),  # a module of a package
        (".", "hinted"),  # a module outside any package
    ],
)
def test_named_in_the_configuration(command, settings, folder, plugin):
    write(settings / folder, hinted=FORK)
    yaml = f"_BASE_: ../base.yaml\nPLUGINS: [{plugin}]\nDISTILLER: {{TYPE: HINTEDKD}}\n{FORK_YAML}"
    write(settings / "configs", x_yaml=yaml)
    status, out, err = command("train", "--cfg", "configs/x.yaml", "HINTEDKD.LOSS.FEAT_WEIGHT", "0.2")
    assert (status, err) == (0, "")
    assert "HINTEDKD: student resnet8" in out
    # the run's configuration is complete, and loads from the folder where the run was started
    assert load_cfg("output/run/config.yaml").HINTEDKD.LOSS.FEAT_WEIGHT == 0.2
    status, out, err = command("train", "--cfg", "output/run/config.yaml", "--resume", "SOLVER.EPOCHS", "3")
    assert (status, err) == (0, "")
    assert "resumed after epoch 2 of 3" in out
    # the deployed model is a bare student, which does not need the plug-in
    status, out, err = command("eval", "-m", "resnet8", "-c", "output/run/student_best.pth")
    assert (status, err) == (0, "")


def test_a_fork_sees_what_mdistiller_shows_it(settings):
    write(settings, hinted=FORK + FORK_CFG)
    overrides = ["PLUGINS", "hinted.py", "DISTILLER.TYPE", "HINTEDKD", "SOLVER.AMP", "off"]
    trainer = build_trainer(load_cfg("base.yaml", overrides))
    distiller = trainer.distiller
    assert distiller.get_extra_parameters() == 32 * 32 + 3 * 32  # a 1×1 convolution with bias, BatchNorm
    assert distiller.head is None
    assert not distiller.channels_last  # in which `view` could not flatten a map
    batch = next(iter(trainer.train_loader))
    distiller.train()
    losses, logits = trainer.train_step(trainer.in_memory_format(batch), 1, 0, 10)
    assert logits.shape == (8, 3)
    assert all(loss.shape == () for loss in losses.values())
    assert distiller.conv_reg.conv.weight.grad.abs().sum() > 0

    def forward_test(image):
        logits, feats = distiller.student(image)
        feats["feats"][-1].view(len(image), -1)
        return logits

    distiller.forward_test = forward_test
    assert trainer.validate()["deployed_top1"] >= 0  # evaluation, too, gives images that `view` can flatten


# --- defaults


def test_defaults_of_the_class_of_the_file_and_of_nobody(settings):
    with_defaults = FORK.replace("class HintedKD(Distiller):", "class A(Distiller):\n    DEFAULTS = {'T': 1.0}\n")
    write(settings, a=with_defaults.replace("HintedKD", "A"), b=FORK + FORK_CFG, c=FORK.replace("HintedKD", "Free"))
    cfg = load_cfg(None, ["PLUGINS", "[a.py, b.py, c.py]", "A.T", "2", "Free.X.Y", "1e-3", "FREE.Z", "[1, two]"])
    assert cfg.A.T == 2.0
    assert isinstance(cfg.A.T, float)
    assert (cfg.HINTEDKD.TEMPERATURE, cfg.HINTEDKD.INPUT_SIZE) == (4, [16, 16])
    assert cfg.HintedKD is cfg.HINTEDKD  # one section for both spellings
    assert (cfg.FREE.X.Y, cfg.Free.Z) == (0.001, [1, "two"])
    assert cfg.PLUGINS == ["a.py", "b.py", "c.py"]
    (settings / "again.yaml").write_text(dump(cfg))
    assert load_cfg("again.yaml") == cfg
    for overrides, message in (
        (["A.S", "2"], "unknown config key A.S in the command line; did you mean A.T"),
        (["HINTEDKD.TEMPERATURE", "hot"], "HINTEDKD.TEMPERATURE in the command line is 'hot'; expected a whole number"),
        (["Free", "2", "NONE.X", "2"], "Free in the command line is a section, given 2"),
        (["NONE.X", "2"], "unknown config key NONE in the command line"),
    ):
        with pytest.raises(UserError, match=message):
            load_cfg(None, overrides)


def test_a_file_adds_keys_to_sections_that_are_there(settings):
    own = "\nCFG = {'EXPERIMENT': {'LOGIT_STAND': False}, 'KD': {'TEMPERATURE': 4}}\n"
    write(settings, hinted=FORK + own)
    cfg = load_cfg(None, ["PLUGINS", "[hinted.py]", "EXPERIMENT.LOGIT_STAND", "True"])
    assert cfg.EXPERIMENT.LOGIT_STAND is True
    assert (cfg.KD.TEMPERATURE, cfg.EXPERIMENT.SEED) == (4.0, 0)
    write(settings, whole="from mdistiller.engine.cfg import CFG\n" + FORK.replace("HintedKD", "Whole"))
    assert load_cfg(None, ["PLUGINS", "[whole.py]", "WHOLE.X", "1"]).WHOLE.X == 1
    write(settings, other=FORK.replace("HintedKD", "Other") + "\nCFG = {'KD': {'TEMPERATURE': 5}}\n")
    with pytest.raises(UserError, match="other.py: CFG.KD.TEMPERATURE is 5, but that key has the default 4.0"):
        load_cfg(None, ["PLUGINS", "[other.py]"])


def test_base_files_name_their_own_plug_ins(settings):
    write(settings / "base/plug", hinted=FORK)
    write(settings / "base", b_yaml=f"_BASE_: ../base.yaml\nPLUGINS: plug/hinted.py\n{FORK_YAML}")
    write(settings, x_yaml="_BASE_: base/b.yaml\nHINTEDKD: {TEMPERATURE: 2}\n")
    cfg = load_cfg("x.yaml")
    assert cfg.PLUGINS == ["base/plug/hinted.py"]
    assert (cfg.HINTEDKD.TEMPERATURE, cfg.HINTEDKD.HINT_LAYER) == (2, 2)
    # plug-ins on the command line replace those of the file
    shutil.copy("base/plug/hinted.py", "moved.py")
    os.remove("base/plug/hinted.py")
    for name in ("HintedKD", "HINTEDKD"):
        del distiller_dict[name], CFG[name]
    del sys.modules["mdistiller.distillers.hinted"]
    assert load_cfg("x.yaml", ["PLUGINS", "moved.py"]).PLUGINS == ["moved.py"]


def test_files_beside_a_plug_in_are_in_its_reach(settings):
    write(settings / "plug", loss="SCALE = 3\n", hinted="from .loss import SCALE\n" + FORK)
    load_cfg(None, ["PLUGINS", "plug/hinted.py"])
    assert sys.modules["mdistiller.distillers.hinted"].SCALE == 3
    assert str(settings / "plug") not in sys.modules["mdistiller.distillers"].__path__


# --- heads


def test_a_head_of_a_plug_in_is_deployed_saved_and_evaluated(command, settings):
    write(settings / "plug", headed=HEADED)
    write(settings, x_yaml="_BASE_: base.yaml\nPLUGINS: [plug/headed.py]\nDISTILLER: {TYPE: HEADED}\n")
    status, out, err = command("train", "--cfg", "x.yaml")
    assert (status, err) == (0, "")
    assert read_checkpoint("output/run/student_best.pth")["head"]["kind"] == "LINEAR"
    evaluate = (REPO / "tools/eval.py", "-m", "resnet8", "-c", "output/run/student_latest.pth")
    status, out, err = process([REPO], *evaluate, "PLUGINS", "plug/headed.py")
    assert (status, err) == (0, "")
    assert "LINEAR head" in out
    # code that a checkpoint names is not run without consent
    status, out, err = process([REPO], *evaluate)
    assert (status, err.count("\n")) == (2, 1)
    assert (
        "needs the head 'LINEAR', which no distiller here has; if you trust it, load what it was trained with:" in err
    )
    assert f'PLUGINS "[{settings / "plug/headed.py"}]"' in err
