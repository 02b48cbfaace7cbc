"""The networks during an epoch, and that they are restored afterwards."""

import gc
import json
import shutil
from functools import partial

import pytest
import torch
from torch import nn

from mdistiller.engine import validate_solver
from mdistiller.engine.build import build_trainer
from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.speed import small_maps
from mdistiller.engine.speed.fast_networks import FastNetworks, _fingerprint, trained_parts
from mdistiller.engine.validate import config_errors
from mdistiller.errors import UserError
from mdistiller.models import build_model
from mdistiller.models.adapters.hooked import hook_outputs


@pytest.fixture
def built(image_folder):
    """A function(method, *overrides) -> (trainer, its faster networks, the lines for the user)."""
    torch.save({"model": build_model("resnet14", 3, "imagefolder", 16).state_dict()}, "teacher.pth")

    def make(method, *overrides):
        options = [
            *("DATASET.TYPE", "imagefolder", "DATASET.ROOT", str(image_folder), "DATASET.INPUT_SIZE", "16"),
            *("DATASET.NUM_WORKERS", "0", "DISTILLER.TYPE", method, "DISTILLER.STUDENT", "resnet8"),
            *("DISTILLER.TEACHER", "resnet14", "DISTILLER.TEACHER_WEIGHTS", "teacher.pth", "EXPERIMENT.NAME", "run"),
            *("SOLVER.BATCH_SIZE", "8", "SOLVER.LR", "0.02", "SOLVER.AMP", "off", "SOLVER.LR_DECAY_STAGES", "[]"),
            *overrides,
        ]
        cfg = load_cfg(None, options)
        trainer, lines = build_trainer(cfg), []
        networks = FastNetworks(trainer.distiller.train(), trainer.train_loader, cfg, trainer.precision, lines.append)
        return trainer, networks, lines

    return make


def test_the_teacher_is_folded_within_an_epoch_only(built):
    trainer, networks, lines = built("KD")
    loaded = trainer.distiller.teacher
    with networks.in_place():
        assert not [module for module in trainer.distiller.teacher.modules() if isinstance(module, nn.BatchNorm2d)]
        trainer.distiller.train()
        assert not trainer.distiller.teacher.training
    assert trainer.distiller.teacher is loaded
    assert lines == ["teacher in inference form: 15 BatchNorms folded, convolutions in float32"]


def test_the_teacher_is_restored_after_an_error(built):
    trainer, networks, _ = built("KD")
    loaded = trainer.distiller.teacher
    with pytest.raises(KeyError), networks.in_place():
        raise KeyError
    assert trainer.distiller.teacher is loaded


def test_a_teacher_in_training_mode_is_not_replaced(built):
    trainer, networks, lines = built("OFD", "OFD.TEACHER_TRAIN_MODE", "True", "TEACHER_CACHE", "memory")
    loaded = trainer.distiller.teacher
    with networks.in_place():
        assert trainer.distiller.teacher is loaded
    assert lines == ["teacher cache: none, the teacher runs as it was built (it is in training mode)"]


def test_a_teacher_with_hooks_is_not_replaced(built):
    trainer, _, _ = built("KD", "TEACHER_CACHE", "memory")
    trainer.distiller.teacher.layer1.register_forward_hook(lambda *call: None)
    lines = []
    networks = FastNetworks(trainer.distiller, trainer.train_loader, trainer.cfg, trainer.precision, lines.append)
    loaded = trainer.distiller.teacher
    with networks.in_place():
        assert trainer.distiller.teacher is loaded
    assert lines == ["teacher cache: none, the teacher runs as it was built (it has hooks)"]


def test_without_a_teacher_there_is_nothing_to_do(built):
    trainer, networks, lines = built("NONE")
    with networks.in_place():
        assert trainer.distiller.teacher is None
    assert not lines


def test_a_cache_without_a_teacher_has_no_effect(built):
    assert built("NONE", "TEACHER_CACHE", "memory")[2] == ["note: TEACHER_CACHE has no effect: NONE has no teacher"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
@pytest.mark.filterwarnings("ignore")  # from the compiler's own imports
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])  # without and with the generated C++ code
def test_a_compiled_teacher_has_the_same_outputs(built, monkeypatch, backend):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    trainer, networks, _ = built("KD", "SOLVER.COMPILE", "default")
    image = torch.randn(8, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = trainer.distiller.teacher(image)[0]
        with networks.in_place():
            assert hasattr(vars(trainer.distiller.teacher)["forward"], "_torchdynamo_orig_callable")
            torch.testing.assert_close(trainer.distiller.teacher(image)[0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
@pytest.mark.filterwarnings("ignore")  # from the compiler's own imports
def test_what_is_not_compiled_is_noted(built):
    assert built("NONE", "SOLVER.COMPILE", "default")[2] == [
        "note: SOLVER.COMPILE has no effect: on a CPU it compiles the teacher only, if that is not cached"
    ]
    cached, networks, lines = built("KD", "SOLVER.COMPILE", "default", "TEACHER_CACHE", "memory")
    with networks.in_place():
        assert "forward" not in vars(cached.distiller.teacher)
    assert lines[-1].startswith("note: SOLVER.COMPILE has no effect")


def test_a_step_begins_once_whatever_its_parts(built, monkeypatch):
    trainer, networks, _ = built("KD", "SOLVER.ACCUMULATE", "2")
    begun = []
    monkeypatch.setattr(networks, "begin_step", lambda: begun.append(trainer.distiller.student.fc.weight.grad))
    trainer.step.networks = networks
    for step, batch in zip(range(2), trainer.train_loader.iterate(0)):
        trainer.train_step(batch, 1, step, 4)
    assert begun == [None, None]  # without gradients in use


def test_hooked_models_are_not_compiled(built):
    trainer, _, _ = built("KD")
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    trainer.distiller.teacher = hook_outputs(model, "mine", 3, 16).eval()
    cfg, lines = trainer.cfg.clone(), []
    cfg.defrost()
    cfg.SOLVER.COMPILE = "default"
    networks = FastNetworks(trainer.distiller, trainer.train_loader, cfg, trainer.precision, lines.append)
    with networks.in_place():
        assert "forward" not in vars(trainer.distiller.teacher)
    assert "note: mine is not compiled: its outputs are taken by hooks" in lines


def test_the_identity_of_a_cache_does_not_depend_on_rounding():
    torch.manual_seed(0)
    model = build_model("resnet8", 3).eval()
    image = torch.randn(2, 3, 16, 16)
    found = _fingerprint(model, image)
    assert len(found) == 1 + 2 * 3 + 1 + 2 * 8 and "-0.0" not in map(str, found)
    with torch.no_grad():
        model.fc.weight.mul_(1 + 1e-6)
        assert _fingerprint(model, image) == found
        model.fc.weight.neg_()
        assert _fingerprint(model, image) != found
        model.fc.weight.mul_(-2)  # of the logits, nothing but the scale is another
        model.fc.bias.mul_(2)
        assert _fingerprint(model, image)[1:] == found[1:] and _fingerprint(model, image) != found
        model.fc.weight.zero_()
        model.fc.bias.zero_()
    assert _fingerprint(model, image)[:7] == [0.0] * 7


def test_a_missing_compiler_is_reported_before_anything_is_built(built, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"SOLVER.COMPILE default needs a C\+\+ compiler"):
        built("KD", "SOLVER.COMPILE", "default")


def test_a_gpu_needs_a_c_compiler(monkeypatch):
    monkeypatch.setattr(validate_solver, "pick_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(validate_solver, "pick_precision", lambda mode, device: None)
    monkeypatch.setattr(shutil, "which", lambda name: {"g++": "/usr/bin/g++"}.get(name))
    errors = list(config_errors(load_cfg(None, ["SOLVER.COMPILE", "default", "SOLVER.AMP", "off"])))
    assert errors == ["SOLVER.COMPILE default needs a C compiler; install gcc, or set it to off"]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["SOLVER.TRAINER", "dot"], "SOLVER.COMPILE is reduce-overhead with SOLVER.TRAINER dot; expected off"),
        (["SOLVER.ACCUMULATE", "2"], "SOLVER.COMPILE is reduce-overhead with SOLVER.ACCUMULATE 2; expected default or"),
    ],
)
def test_what_a_compiled_student_cannot_do(monkeypatch, overrides, line):
    monkeypatch.setattr(shutil, "which", lambda name: name)  # a machine with a compiler
    models = ["DISTILLER.TYPE", "KD", "DISTILLER.TEACHER", "resnet14", "DISTILLER.STUDENT", "resnet8"]
    cfg = load_cfg(None, [*models, "SOLVER.COMPILE", "reduce-overhead", "SOLVER.AMP", "off", *overrides])
    assert list(config_errors(cfg)) == []  # on a CPU only the teacher is compiled
    monkeypatch.setattr(validate_solver, "pick_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(validate_solver, "pick_precision", lambda mode, device: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    (error,) = config_errors(cfg)
    assert error.startswith(line)


def test_student_and_head_are_compiled_where_a_gpu_runs_them(built):
    trainer, networks, _ = built("SFAKD")
    networks._faster = [
        (module, name, lambda *inputs, name=name: name) for module, name in trained_parts(trainer.distiller)
    ]
    student, head = trainer.distiller.student, trainer.distiller.head
    keys = list(trainer.distiller.state_dict())
    with networks.in_place():
        assert (student.forward_stages(None), head(None)) == ("forward_stages", "forward")
    assert not [name for name in ("forward_stages", "forward") if name in vars(student) or name in vars(head)]
    assert list(trainer.distiller.state_dict()) == keys


def test_small_maps_are_convolved_faster_within_an_epoch_only(built, monkeypatch):
    monkeypatch.setattr(small_maps, "cpu_has", lambda name: True)
    trainer, networks, _ = built("SFAKD", "SOLVER.AMP", "bf16")

    def replaced():
        return [module for module in trainer.distiller.modules() if "_conv_forward" in vars(module)]

    with networks.in_place():
        convolutions = replaced()
        for part in (trainer.distiller.student, trainer.distiller.teacher):
            assert [module for module in part.modules() if module in convolutions]
        batch = next(iter(trainer.train_loader))
        losses, _ = trainer.train_step(batch, 1, 0, len(trainer.train_loader))
        assert all(loss.isfinite() for loss in losses.values())
    assert not replaced()


def test_memory_is_logged_and_no_tensor_is_kept_from_epoch_to_epoch(built):
    trainer, _, _ = built("SFAKD", "SOLVER.EPOCHS", "6", "TEACHER_CACHE", "memory")
    tensors = []

    def counted():
        gc.collect()
        tensors.append(sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()))
        return validate()

    trainer.validate, validate = counted, trainer.validate
    summary = trainer.train()
    assert len(set(tensors[1:])) == 1, tensors
    rows = [json.loads(row) for row in trainer.folder.metrics.read_text().splitlines()]
    assert 0 < rows[-1]["memory_mib"] <= rows[-1]["peak_memory_mib"] <= summary["peak_memory_mib"]
    assert f"peak memory {summary['peak_memory_mib']} MiB" in trainer.folder.worklog.read_text()
