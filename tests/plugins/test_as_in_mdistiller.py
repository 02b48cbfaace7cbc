"""Distillers are called, sized and checked as MDistiller's own scripts do it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from mdistiller.distillers import distiller_dict
from mdistiller.distillers._base import section_owner
from mdistiller.distillers._common import blank_outputs, get_feat_shapes, stage_shapes
from mdistiller.distillers._plugins import LIBRARY
from mdistiller.distillers.KD import KD
from mdistiller.engine.build import build_trainer, config_errors
from mdistiller.engine.cfg import load_cfg
from mdistiller.errors import UserError
from mdistiller.models import build_model
from tests.plugins.files import FORK, FORK_CFG, write

# a test starts up to three processes, one after the other
pytestmark = [pytest.mark.usefixtures("registries_as_before"), pytest.mark.timeout(900)]

BASE_TRAINER = ["SOLVER.TRAINER", "base"]

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
    assert blank_outputs(student, (16, 32))[1]["final_map"].shape[1:] == (64, 4, 8)
    with pytest.raises(UserError, match=r"DATASET.INPUT_SIZE is None"):
        blank_outputs(student, None)


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
            def config_errors(cls, options, section):
                yield f"{section}.VOLUME is {options.VOLUME}; expected less"
            DEFAULTS = {"VOLUME": 11}
        """,
    )
    cfg = load_cfg("base.yaml", ["PLUGINS", "mine.py", "SOLVER.TRAINER", "base"])
    expected = {
        "MINE": [],
        "PARTLY": [],
        "LOUDER": ["LOUDER.VOLUME is 11; expected less"],
        "SAME": [
            "SAME inherits the constructor of KD, which reads the section KD; set KD.KEY instead of SAME.KEY, or give"
            " the class DEFAULTS of its own",
            "SAME.TEMPERATURE is -1.0; expected a number above 0",
        ],
    }
    for name, faults in expected.items():
        cfg.DISTILLER.TYPE = name
        if name == "SAME":
            cfg.SAME.TEMPERATURE = -1.0
        assert config_errors(cfg) == faults
    student, teacher = build_model("resnet8", 3), build_model("resnet14", 3)
    assert distiller_dict["LOUDER"](student, teacher, cfg).temperature == 4.0  # KD's constructor reads KD's section


def test_a_constructor_of_a_plug_in_may_read_the_section_of_its_subclass(settings):
    write(
        settings,
        mine="""
        from ._base import Distiller

        class Common(Distiller):
            def __init__(self, student, teacher, cfg):
                super().__init__(student, teacher)
                self.weight = cfg.MINE.WEIGHT

        class Mine(Common):
            DEFAULTS = {"WEIGHT": 1.0}
        """,
    )
    cfg = load_cfg("base.yaml", ["PLUGINS", "mine.py", "DISTILLER.TYPE", "MINE", "MINE.WEIGHT", "3", *BASE_TRAINER])
    assert config_errors(cfg) == []
    assert distiller_dict["MINE"](build_model("resnet8", 3), build_model("resnet14", 3), cfg).weight == 3.0


def test_the_library_lists_its_own_methods():
    modules = {distiller.__module__ for distiller in distiller_dict.values()}
    assert {f"mdistiller.distillers.{name}" for name in LIBRARY} == {m for m in modules if m.startswith("mdistiller.")}


def test_the_section_that_a_subclass_of_a_subclass_reads(registries_as_before):
    class Mine(KD):
        DEFAULTS = {**KD.DEFAULTS, "MORE": 1.0}
        section = "MINE"

    class Below(Mine):
        DEFAULTS = {"OTHER": 1.0}
        section = "BELOW"

    class Plain(KD):
        section = "PLAIN"

    owners = [section_owner(kind, KD) for kind in (KD, Mine, Below, Plain)]
    assert owners == [KD, Mine, Mine, KD]
    student, teacher = build_model("resnet8", 3), build_model("resnet14", 3)
    cfg = SimpleNamespace(KD=load_cfg(None, ["KD.TEMPERATURE", "8.0"]).KD)  # as in MDistiller: sections as attributes
    assert Plain(student, teacher, cfg).temperature == 8.0
