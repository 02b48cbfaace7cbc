"""Distillers of users: pasted into the package, named in a configuration, installed; and their errors."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import textwrap

import pytest
import torch

from mdistiller.distillers import _plugins, distiller_dict, head_dict
from mdistiller.distillers._common import get_feat_shapes, probe, stage_shapes
from mdistiller.engine.build import build_trainer, config_errors
from mdistiller.engine.cfg import CFG, dump, load_cfg
from mdistiller.engine.checkpoint import read_checkpoint
from mdistiller.errors import UserError
from mdistiller.models import build_model
from tests.conftest import REPO
from tests.processes import run_python

# a test starts up to three processes, one after the other
pytestmark = [pytest.mark.usefixtures("registries_as_before"), pytest.mark.timeout(900)]

# In the style of MDistiller's forks: no register, `super` with arguments, a map flattened by `view`, a loss that is
# no scalar, an input size of two numbers, a section in capitals.
FORK = '''
import torch
import torch.nn as nn
import torch.nn.functional as F

from ._base import Distiller
from ._common import ConvReg, get_feat_shapes
from .KD import kd_loss


class HintedKD(Distiller):
    """Hints and logits at once."""

    def __init__(self, student, teacher, cfg):
        super(HintedKD, self).__init__(student, teacher)
        self.ce_loss_weight = cfg.HINTEDKD.LOSS.CE_WEIGHT
        self.kd_loss_weight = cfg.HINTEDKD.LOSS.KD_WEIGHT
        self.feat_loss_weight = cfg.HINTEDKD.LOSS.FEAT_WEIGHT
        self.temperature = cfg.HINTEDKD.TEMPERATURE
        self.hint_layer = cfg.HINTEDKD.HINT_LAYER
        feat_s_shapes, feat_t_shapes = get_feat_shapes(self.student, self.teacher, cfg.HINTEDKD.INPUT_SIZE)
        self.conv_reg = ConvReg(feat_s_shapes[self.hint_layer], feat_t_shapes[self.hint_layer])

    def get_learnable_parameters(self):
        return super().get_learnable_parameters() + list(self.conv_reg.parameters())

    def get_extra_parameters(self):
        num_p = 0
        for p in self.conv_reg.parameters():
            num_p += p.numel()
        return num_p

    def forward_train(self, image, target, **kwargs):
        logits_student, feature_student = self.student(image)
        with torch.no_grad():
            logits_teacher, feature_teacher = self.teacher(image)
        f_s = self.conv_reg(feature_student["feats"][self.hint_layer])
        f_t = feature_teacher["feats"][self.hint_layer]
        f_s, f_t = f_s.view(f_s.shape[0], -1), f_t.view(f_t.shape[0], -1)
        losses_dict = {
            "loss_ce": self.ce_loss_weight * F.cross_entropy(logits_student, target),
            "loss_kd": self.kd_loss_weight * kd_loss(logits_student, logits_teacher, self.temperature),
            "loss_feat": self.feat_loss_weight * F.mse_loss(f_s, f_t).view(1),
        }
        return logits_student, losses_dict
'''

# the lines that a fork adds to MDistiller's cfg.py
FORK_CFG = """
from yacs.config import CfgNode as CN

CFG = CN()
CFG.HINTEDKD = CN()
CFG.HINTEDKD.TEMPERATURE = 4
CFG.HINTEDKD.HINT_LAYER = 2
CFG.HINTEDKD.INPUT_SIZE = (16, 16)
CFG.HINTEDKD.LOSS = CN()
CFG.HINTEDKD.LOSS.CE_WEIGHT = 1.0
CFG.HINTEDKD.LOSS.KD_WEIGHT = 0.5
CFG.HINTEDKD.LOSS.FEAT_WEIGHT = 0.1
"""
FORK_YAML = """
HINTEDKD:
  TEMPERATURE: 4
  HINT_LAYER: 2
  INPUT_SIZE: [16, 16]
  LOSS: {CE_WEIGHT: 1.0, KD_WEIGHT: 0.5, FEAT_WEIGHT: 1e-1}
"""

# in the style of this library, with a head that is deployed
HEADED = """
from torch import nn
from mdistiller.distillers import Distiller, Head, head_dict, register


@head_dict.register("LINEAR")
class LinearHead(Head):
    kind = "LINEAR"

    def __init__(self, in_channels, out_channels, num_classes, bias=True):
        options = dict(in_channels=in_channels, out_channels=out_channels, num_classes=num_classes, bias=bias)
        super().__init__(nn.Conv2d(in_channels, out_channels, 1), out_channels, num_classes, bias, options)


@register("HEADED")
class Headed(Distiller):
    DEFAULTS = {"WEIGHT": 1.0}

    def __init__(self, student, teacher, cfg):
        super().__init__(student, teacher)
        self.weight = cfg.HEADED.WEIGHT
        self.head = LinearHead.with_classifier(teacher.get_classifier(), in_channels=64)

    def forward_train(self, image, target, **kwargs):
        final_map = self.student(image)[1]["final_map"]
        pooled = self.teacher(image)[1]["pooled_feat"]
        output = self.head(final_map)
        return output.logits, {"loss_feat": self.weight * (output.pooled - pooled).square().mean()}
"""


@pytest.fixture
def settings(image_folder, tmp_path):
    """`base.yaml`: a teacher and a student on small images; a method is to be added."""
    torch.manual_seed(0)
    torch.save({"model": build_model("resnet14", 3).state_dict()}, tmp_path / "teacher.pth")
    (tmp_path / "base.yaml").write_text(
        f"DATASET: {{TYPE: imagefolder, ROOT: '{image_folder}', INPUT_SIZE: 16, NUM_WORKERS: 0}}\n"
        "DISTILLER: {TEACHER: resnet14, STUDENT: resnet8, TEACHER_WEIGHTS: teacher.pth}\n"
        "SOLVER: {EPOCHS: 2, BATCH_SIZE: 8, LR: 0.02, LR_DECAY_STAGES: []}\n"
        "LOG: {WANDB: False}\nEXPERIMENT: {NAME: run}\n"
    )
    return tmp_path


def write(folder, **files):
    """Write `name="content"` to `folder/name.py` or, for `name_yaml`, to `folder/name.yaml`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        stem, _, kind = name.rpartition("_yaml")
        path = folder / (f"{stem}.yaml" if stem and not kind else f"{name}.py")
        path.write_text(textwrap.dedent(content), encoding="utf-8")


def process(root, *arguments):
    """Run a tool of this repository with the package and the modules below `root`, as a user's shell would."""
    return run_python(*arguments, PYTHONPATH=os.pathsep.join(map(str, root)))


def losses_of(name="run"):
    with open(f"output/{name}/metrics.jsonl", encoding="utf-8") as rows:
        return [json.loads(row) for row in rows]


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


# --- what MDistiller's own scripts do


def test_distillers_are_called_as_there():
    cfg = load_cfg(None, ["DATASET.INPUT_SIZE", "32", "CRD.NCE.K", "8"])
    student, teacher = build_model("resnet8", 5), build_model("resnet14", 5)
    image, target = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    assert distiller_dict["NONE"](student)(image=image, target=target)[0].shape == (4, 5)
    distiller = distiller_dict["CRD"](student, teacher, cfg, 20)
    index, contrast = torch.arange(4), torch.randint(20, (4, 9))
    _, losses = distiller(image=image, target=target, index=index, contrastive_index=contrast)
    assert losses["loss_kd"].isfinite()


def test_a_class_that_asks_for_the_number_of_images_gets_it(settings):
    counting = FORK.replace("teacher, cfg):", "teacher, cfg, num_data):").replace(
        "temperature = cfg", "count = num_data #"
    )
    write(settings, mine=counting + FORK_CFG)
    cfg = load_cfg("base.yaml", ["PLUGINS", "mine.py", "DISTILLER.TYPE", "HINTEDKD"])
    assert build_trainer(cfg).distiller.count == 36


def test_input_sizes_are_a_side_or_both():
    student, teacher = build_model("resnet8", 5), build_model("resnet32x4", 5)
    assert get_feat_shapes(student, teacher, 16) == get_feat_shapes(student, teacher, (16, 16))
    shapes, _ = get_feat_shapes(student, teacher, [16, 32])
    assert shapes == stage_shapes(student, (16, 32))
    assert [tuple(shape[1:]) for shape in shapes][-1] == (64, 4, 8)
    assert probe(student, (16, 32))[1]["final_map"].shape[1:] == (64, 4, 8)
    with pytest.raises(UserError, match=r"DATASET.INPUT_SIZE is None"):
        probe(student, None)


def test_a_method_with_a_section_of_its_own_inherits_no_checks_for_it(settings):
    """A parent's ranges and errors apply to sections that have its keys."""
    write(
        settings,
        mine="""
        from .SFAKD import SFAKD
        from .KD import KD

        CFG = {"PARTLY": {"CE_WEIGHT": -1.0}}

        class Mine(SFAKD):
            DEFAULTS = {"SIGMA": -3.0}

        class Partly(SFAKD):
            pass

        class Same(KD):
            pass

        class Louder(KD):
            @classmethod
            def faults(cls, options, section):
                yield f"{section}.VOLUME is {options.VOLUME}; expected less"
            DEFAULTS = {"VOLUME": 11}
        """,
    )
    cfg = load_cfg("base.yaml", ["PLUGINS", "mine.py", "SOLVER.TRAINER", "base"])
    expected = {
        "MINE": [],
        "PARTLY": [],
        "SAME": ["SAME.TEMPERATURE is -1.0; expected a number above 0"],
        "LOUDER": ["LOUDER.VOLUME is 11; expected less"],
    }
    for name, faults in expected.items():
        cfg.DISTILLER.TYPE = name
        if name == "SAME":
            cfg.SAME.TEMPERATURE = -1.0
        assert config_errors(cfg) == faults
    student, teacher = build_model("resnet8", 3), build_model("resnet14", 3)
    assert distiller_dict["LOUDER"](student, teacher, cfg).temperature == 4.0  # KD's constructor reads KD's section


def test_a_plug_in_may_define_config_errors_by_its_former_name(settings):
    """`faults` of a plug-in runs, may call its parent, and may be called by a class that uses the new name."""
    write(
        settings,
        mine="""
        from .SFAKD import SFAKD

        class Old(SFAKD):
            DEFAULTS = {**SFAKD.DEFAULTS, "VOLUME": 11}

            @classmethod
            def faults(cls, options, section):
                yield from super().faults(options, section)
                yield f"{section}.VOLUME is {options.VOLUME}; expected less"

        class New(Old):
            @classmethod
            def config_errors(cls, options, section):
                yield from super().config_errors(options, section)
                yield f"{section}.VOLUME is {options.VOLUME}; expected 1"
        """,
    )
    cfg = load_cfg("base.yaml", ["PLUGINS", "mine.py", "SOLVER.TRAINER", "base", "NEW.SIGMA", "-1", "OLD.SIGMA", "-1"])
    for name, num_own in (("OLD", 1), ("NEW", 2)):
        cfg.DISTILLER.TYPE = name
        cfg[name].FREQUENCY_BRANCH = cfg[name].SPATIAL_BRANCH = False
        assert config_errors(cfg) == [
            f"{name}.SIGMA is -1.0; expected a number above 0 (0.1 is the default)",
            f"{name}.FREQUENCY_BRANCH and {name}.SPATIAL_BRANCH are both off; switch at least one on",
            *(f"{name}.VOLUME is 11; expected {expected}" for expected in ("less", "1")[:num_own]),
        ]
        assert config_errors(cfg) == list(distiller_dict[name].faults(cfg[name], name))
