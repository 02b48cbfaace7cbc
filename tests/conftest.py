"""Fixtures for all tests. Tests do not touch the user's folders, and train on small image folders."""

from __future__ import annotations

import copy
import faulthandler
import importlib.util
import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mdistiller import cli
from tests.processes import REPO, Started

# The last bits of sums depend on the number of threads. Use one, in this process and in those that it starts.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

GRACE_SECONDS = 60


def pytest_configure(config):
    config.own_stderr = os.fdopen(os.dup(2), "w")  # before pytest captures it
    # A shell starts background jobs with SIGINT ignored, and child processes inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item):
    """End pytest if a test still runs `GRACE_SECONDS` after pytest-timeout should have ended it.

    pytest-timeout's signal does not stop a test that hangs in C++ code, and its thread does not stop a test that hangs
    while it holds Python's global lock.
    """
    marker, limit = item.get_closest_marker("timeout"), item.config.getoption("timeout")
    if limit is None:
        limit = marker.args[0] if marker else item.config.getini("timeout")
    if float(limit) > 0:  # 0 disables the limit
        faulthandler.dump_traceback_later(float(limit) + GRACE_SECONDS, exit=True, file=item.config.own_stderr)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def started():
    """Start processes that are killed after the test; see `tests.processes.Started`."""
    with ExitStack() as stack:
        yield lambda *command, **options: stack.enter_context(Started(*command, **options))


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """Run in an empty folder, with folders for caches, data and checkpoints inside it."""
    for name, folder in (("CACHE", "cache"), ("CKPTS", "ckpts"), ("DATA", "data")):
        monkeypatch.setenv(f"MDISTILLER_{name}", str(tmp_path / folder))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.chdir(tmp_path)


def make_image_folder(root: Path, classes: int = 3, train: int = 12, val: int = 6, size: int = 16) -> Path:
    """Write an image folder that can be learned: each class has its own color, plus noise."""
    rng = np.random.default_rng(0)
    palette = rng.integers(40, 216, (classes, 3))
    for split, count in (("train", train), ("val", val)):
        for label in range(classes):
            folder = root / split / f"class_{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                noise = rng.integers(-40, 40, (size, size, 3))
                Image.fromarray((palette[label] + noise).clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
    return root


def take_step(update, losses):
    """Let an update rule take a step for these losses."""
    update.zero_grad()
    update.backward(losses)
    update.step()


def with_distiller(trainer, distiller):
    """Return a trainer like `trainer` with another distiller."""
    return type(trainer)(trainer.name, distiller, trainer.train_loader, trainer.val_loader, trainer.cfg)


@pytest.fixture
def image_folder(tmp_path):
    return make_image_folder(tmp_path / "images")


@pytest.fixture
def command(monkeypatch, capsys):
    """Run a command line of tools/ in this process: `command("train", "--cfg", …)` → `(status, stdout, stderr)`."""

    def call(tool: str, *arguments: object):
        spec = importlib.util.spec_from_file_location(f"tool_{tool}", REPO / "tools" / f"{tool}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [tool, *map(str, arguments)])
        if tool == "eval":  # a few runs are enough where the speed does not matter
            monkeypatch.setattr("mdistiller.engine.evaluation.cost_report.SECONDS", 0.0)
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            cli.run(module.main)
        out, err = capsys.readouterr()
        return exit_info.value.code, out, err

    return call


@pytest.fixture
def registries_as_before(tmp_path):
    """Remove plug-ins after the test. Otherwise they would stay registered until the process ends."""
    from mdistiller.distillers import _plugins, distiller_dict, head_dict
    from mdistiller.engine.cfg import CFG
    from mdistiller.models import FAMILIES

    registries = [distiller_dict, head_dict, *FAMILIES, _plugins.adopted_modules, CFG]
    before = [dict(registry) for registry in registries]
    modules, defaults, path = set(sys.modules), copy.deepcopy(before[-1]), list(sys.path)
    yield
    for registry, content in zip(registries, before):
        for name in set(registry) - set(content):
            del registry[name]
    CFG.update(defaults)  # restores sections to which keys were added
    sys.path[:] = path
    new = set(sys.modules) - modules
    roots = {name for name in new if "." not in name and str(tmp_path) in repr(sys.modules[name])}
    for name in new:
        if name.startswith("mdistiller.distillers.") or name.partition(".")[0] in roots:
            del sys.modules[name]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
