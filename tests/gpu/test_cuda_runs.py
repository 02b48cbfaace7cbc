"""Whole runs on a real CUDA device: compiled parts, float16, the teacher cache, resuming."""

from __future__ import annotations

import json

import pytest
import torch

from mdistiller.engine.build import build_trainer
from mdistiller.models import build_model
from tests.engine.test_trainer import settings


@pytest.fixture
def images(image_folder):
    torch.manual_seed(1)
    torch.save({"model": build_model("resnet14", 3, "imagefolder", 16).state_dict()}, "teacher.pth")
    return image_folder


def losses(trainer):
    return [json.loads(row)["loss"] for row in trainer.folder.metrics.read_text().splitlines()]


@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.parametrize("method", ["KD", "SFAKD"])
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled(images, method, mode):
    runs = {}
    for name in ("off", mode):
        runs[name] = build_trainer(settings(images, "SOLVER.COMPILE", name, method=method, name=f"{method}_{name}"))
        assert runs[name].device.type == "cuda"
        runs[name].train()
    assert losses(runs[mode]) == pytest.approx(losses(runs["off"]), rel=0.05)


@pytest.mark.parametrize("options", [("SOLVER.AMP", "fp16"), ("SOLVER.AMP", "bf16"), ("DATASET.IN_MEMORY", "no")])
@pytest.mark.parametrize("method", ["KD", "SFAKD", "CRD"])
def test_a_run(images, method, options):
    trainer = build_trainer(settings(images, "CRD.NCE.K", "8", *options, method=method))
    trainer.train()
    assert trainer.step.scaler.is_enabled() == ("fp16" in options)
    assert losses(trainer)[1] < 2 * losses(trainer)[0]


@pytest.mark.parametrize("where", ["memory", "cache"])
@pytest.mark.parametrize("method", ["KD", "SFAKD"])
def test_the_teacher_cache(images, method, where, monkeypatch):
    # TF32 and the search for the fastest algorithm would make the two runs round differently
    monkeypatch.setattr("mdistiller.engine.build.prepare_device", lambda device: None)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    runs = []
    for name, choice in (("plain", "off"), ("cached", where)):
        options = ["DATASET.PADDING", "0", "TEACHER_CACHE", choice]
        runs.append(build_trainer(settings(images, *options, method=method, name=name, epochs=3)))
        runs[-1].train()
    assert losses(runs[1]) == pytest.approx(losses(runs[0]), rel=1e-2)


@pytest.mark.parametrize("method", ["KD", "SFAKD", "CRD"])
def test_resume(images, method):
    def run(name, epochs):
        return build_trainer(
            settings(images, "SOLVER.SCHEDULE", "step", "CRD.NCE.K", "8", method=method, name=name, epochs=epochs)
        )

    whole = run("whole", 4)
    whole.train()
    run("parts", 2).train()
    resumed = run("parts", 4)
    resumed.train(resume=True)
    # the order of additions on a GPU may differ from run to run
    assert losses(resumed) == pytest.approx(losses(whole), rel=1e-2)
