"""The linear probe before fine-tuning: what it computes, what it leaves alone, and what it refuses."""

from __future__ import annotations

from typing import Any, List

import pytest
import torch
import torch.nn.functional as F

from mdistiller import distributed
from mdistiller.dataset import get_dataset
from mdistiller.engine.build import build_trainer
from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.solver.linear_probe import DECAY, check_probe, fit, pooled_features, train_classifier
from mdistiller.engine.speed.precision import Precision
from mdistiller.errors import UserError
from mdistiller.models import build_model
from tests.engine.run.test_exact_resume import STEPS, built, crashed_and_resumed, folder  # noqa: F401 (a fixture)
from tests.soak.kill_and_resume import differences

CPU = torch.device("cpu")
FLOAT32 = Precision("cpu", None)
FINE_TUNING = [
    "SOLVER.PROBE_EPOCHS",
    "20",
    "SOLVER.BACKBONE_LR_FACTOR",
    "0.5",
    "SOLVER.FREEZE_BN",
    "True",
    "SOLVER.LR",
    "0.001",
    "DISTILLER.STUDENT_WEIGHTS",
    "student.pth",
]


@pytest.fixture(autouse=True)
def student_weights() -> None:
    torch.manual_seed(1)
    torch.save({"model": build_model("resnet8", 3).state_dict()}, "student.pth")


def clusters(num_images: int = 90, num_channels: int = 6) -> Any:
    """Return features around three points in channels of very different scales, one of them constant, and labels."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(num_images) % 3
    features = torch.randn(3, num_channels, generator=generator)[targets]
    features += 0.5 * torch.randn(num_images, num_channels, generator=generator)
    features = features * torch.logspace(-1, 1, num_channels) + 1
    features[:, 2] = 7
    return features, targets


@pytest.mark.parametrize("with_bias", [True, False])
def test_the_classifier_is_the_minimum(with_bias: bool) -> None:
    features, targets = clusters()
    weight, bias, passes = fit(features, targets, 3, 200, with_bias)
    assert passes < 200
    scale = features.std(0, unbiased=False)
    scale[2] = 1
    weight, bias = weight.double().requires_grad_(), bias.double().requires_grad_()
    loss = F.cross_entropy(features.double() @ weight.T + bias, targets)
    (loss + DECAY / 2 * (weight * scale).square().sum()).backward()
    assert (weight.grad / scale).abs().max() < 1e-3  # by the weights of scaled features
    assert bias.any() == with_bias
    if with_bias:
        assert bias.grad.abs().max() < 1e-3
        assert ((features @ weight.float().T + bias.float()).argmax(1) == targets).float().mean() > 0.9
    assert fit(features, targets, 3, 5, with_bias)[2] <= 6  # a line search may end with one more


@pytest.fixture
def loader(image_folder: Any) -> Any:
    options = ["DATASET.TYPE", "imagefolder", "DATASET.ROOT", str(image_folder), "DATASET.INPUT_SIZE", "16"]
    options += ["DATASET.NUM_WORKERS", "0", "DATASET.TEST.BATCH_SIZE", "5", "SOLVER.BATCH_SIZE", "8"]
    return get_dataset(load_cfg(None, options))[0]


def test_only_the_classifier_changes(loader: Any) -> None:
    student = build_model("resnet8", 3).train()
    before = {key: value.clone() for key, value in student.state_dict().items()}
    random = torch.get_rng_state()
    line = train_classifier(student, loader, FLOAT32, 50)
    assert line.startswith("probe: 36 features of 64 channels computed once, in ")
    assert torch.equal(torch.get_rng_state(), random)
    assert student.training
    changed = [key for key, value in student.state_dict().items() if not torch.equal(value, before[key])]
    assert changed == ["fc.weight", "fc.bias"]
    features = pooled_features(student, loader, FLOAT32, lambda: None)
    with torch.no_grad():
        hits = student.fc(features).argmax(1) == loader.targets
    assert hits.float().mean() > 0.9  # the classes differ by their colors
    first = student.fc.weight.clone()
    torch.nn.init.normal_(student.fc.weight)
    train_classifier(student, loader, FLOAT32, 50)
    assert torch.equal(student.fc.weight, first)  # it does not depend on the classifier before


def test_features_are_those_of_each_image(loader: Any) -> None:
    student = build_model("resnet8", 3).eval()
    features = pooled_features(student, loader, FLOAT32, lambda: None)
    batch = {
        int(i): row for b in loader.unaugmented() for i, row in zip(b["index"], student(b["image"])[1]["pooled_feat"])
    }
    assert features.shape == (36, 64)
    assert list(batch) == list(range(36))
    torch.testing.assert_close(features, torch.stack(list(batch.values())).detach())


def test_features_of_two_processes(loader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its share of the batches; together they have those of one process, in the same order."""
    student = build_model("resnet8", 3).eval()
    expected = pooled_features(student, loader, FLOAT32, lambda: None)
    num_batches = len(list(loader.unaugmented()))
    sent: List[Any] = []
    checks: List[int] = []
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "get_rank", lambda rank=rank: rank)
        if rank == 1:
            monkeypatch.setattr(distributed, "all_gather", lambda own: [sent[0], own])
        else:
            monkeypatch.setattr(distributed, "all_gather", lambda own: sent.append(own) or [own])
        features = pooled_features(student, loader, FLOAT32, lambda: checks.append(1))
    assert torch.equal(features, expected)
    assert len(checks) == 2 * -(-num_batches // 2)  # equally many in both


def test_a_model_without_a_classifier_and_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    student = build_model("resnet8", 3)
    check_probe(student, 10, CPU)
    free = {CPU: 2**20}
    monkeypatch.setattr("mdistiller.engine.solver.linear_probe.available_memory", lambda device: free[device])
    with pytest.raises(
        UserError, match=r"PROBE_EPOCHS needs 0\.75 GiB of memory \(cpu\) for 1000000 features of 64 ch"
    ):
        check_probe(student, 1_000_000, CPU)
    free[CPU] = 2**33
    with pytest.raises(UserError, match=r"needs 11\.89 GiB of memory \(cpu\) for 1000000 features of .* 1000 classes"):
        check_probe(build_model("resnet8", 1000), 1_000_000, CPU)  # the logits need the most
    gpu = torch.device("cuda")
    free.update({CPU: 2**30, gpu: 2**30})
    check_probe(student, 1_000_000, gpu)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "_initialized", True)
    with pytest.raises(UserError, match=r"needs 1\.43 GiB of memory \(cpu\)"):  # all features in each process
        check_probe(student, 1_000_000, gpu)
    free[CPU] = 2**40
    with pytest.raises(UserError, match=r"needs 11\.89 GiB of memory \(cuda\)"):
        check_probe(build_model("resnet8", 1000), 1_000_000, gpu)
    torch.nn.utils.parametrizations.weight_norm(student.fc)
    with pytest.raises(UserError, match="this one is parametrized"):
        check_probe(student, 10, CPU)


def test_a_run_killed_after_the_probe(folder: Any) -> None:  # noqa: F811
    def make(run: str) -> Any:
        return built(folder, run, "NONE", more=FINE_TUNING)

    whole = make("whole")
    whole.train()
    log = (whole.folder.path / "worklog.txt").read_text()
    assert log.count("probe: ") == 1
    resumed = crashed_and_resumed(STEPS + 5, make)
    assert differences(whole.folder.path, resumed.folder.path) == []
    assert (resumed.folder.path / "worklog.txt").read_text().count("probe: ") == 1


def test_a_run_stopped_in_the_probe(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    from mdistiller.engine.run.signals import RunStopped

    whole = built(folder, "whole", "NONE", more=FINE_TUNING)
    whole.train()
    stopped = built(folder, "stopped", "NONE", more=FINE_TUNING)
    checks = iter([None, "SIGTERM"])
    own = stopped.stop.check

    def check() -> None:
        stopped.stop.received = next(checks, "SIGTERM")
        own()

    monkeypatch.setattr(stopped.stop, "check", check)
    with pytest.raises(RunStopped):
        stopped.train()
    assert stopped.progress.step == 0
    resumed = built(folder, "stopped", "NONE", more=FINE_TUNING)
    resumed.train(resume=True)
    assert differences(whole.folder.path, resumed.folder.path) == []


def test_statistics_are_frozen(folder: Any) -> None:  # noqa: F811
    run = built(folder, "run", "NONE", more=FINE_TUNING)
    before = {key: value.clone() for key, value in run.distiller.student.state_dict().items()}
    run.train()
    after = run.distiller.student.state_dict()
    assert list(after) == list(before)
    for key, value in after.items():
        assert torch.equal(value, before[key]) == ("running" in key or "num_batches" in key), key
    rates = {group["lr_scale"]: group["params"] for group in run.step.optimizer.param_groups}
    assert set(rates) == {0.5, 1.0}
    assert {id(p) for p in rates[1.0]} == {id(p) for p in run.distiller.student.get_classifier().parameters()}


def test_one_line_for_a_student_of_logits_alone(folder: Any) -> None:  # noqa: F811
    from tests.conftest import REPO

    name = f"{REPO / 'tests/models/adapters/made_models.py'}:Hidden"
    for key, value in (("SOLVER.PROBE_EPOCHS", "3"), ("SOLVER.BACKBONE_LR_FACTOR", "0.5")):
        cfg = built(folder, "run", "NONE").cfg.clone()
        cfg.defrost()
        cfg.DISTILLER.STUDENT = name
        cfg.SOLVER[key.partition(".")[2]] = type(cfg.SOLVER[key.partition(".")[2]])(value)
        with pytest.raises(UserError, match=f"^{key} .*Hidden") as caught:
            build_trainer(cfg)
        assert "\n" not in str(caught.value)
