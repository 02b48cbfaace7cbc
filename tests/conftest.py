"""Fixtures for the whole suite: no test touches the user's own folders, and small image folders to train on."""

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

# Sums have other last bits with another number of threads: one, in this process and in those that it starts.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

GRACE = 60  # seconds


def pytest_configure(config):
    config.own_stderr = os.fdopen(os.dup(2), "w")  # before pytest captures it
    # A shell starts what runs in the background with SIGINT ignored, and a process that ignores it passes that on.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item):
    """End everything if a test still runs `GRACE` seconds after pytest-timeout should have ended it.

    Its signal reaches no test that hangs in C++ code, and its thread none that hangs with Python's global lock held.
    """
    marker, limit = item.get_closest_marker("timeout"), item.config.getoption("timeout")
    if limit is None:
        limit = marker.args[0] if marker else item.config.getini("timeout")
    if float(limit) > 0:  # 0 switches it off
        faulthandler.dump_traceback_later(float(limit) + GRACE, exit=True, file=item.config.own_stderr)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def started():
    """Start processes that end with the test, as `tests.processes.Started` does."""
    with ExitStack() as stack:
        yield lambda *command, **options: stack.enter_context(Started(*command, **options))


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """Run in an empty folder, with caches, data and checkpoints below it."""
    for name, folder in (("CACHE", "cache"), ("CKPTS", "ckpts"), ("DATA", "data")):
        monkeypatch.setenv(f"MDISTILLER_{name}", str(tmp_path / folder))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.chdir(tmp_path)


def make_image_folder(root: Path, classes: int = 3, train: int = 12, val: int = 6, size: int = 16) -> Path:
    """Write a learnable image folder: class k is a k-dependent colour plus noise."""
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
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            cli.run(module.main)
        out, err = capsys.readouterr()
        return exit_info.value.code, out, err

    return call


@pytest.fixture
def registries_as_before(tmp_path):
    """A plug-in stays for the life of a process; here it is taken out after the test."""
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
    CFG.update(defaults)  # sections to which keys were added
    sys.path[:] = path
    new = set(sys.modules) - modules
    roots = {name for name in new if "." not in name and str(tmp_path) in repr(sys.modules[name])}
    for name in new:
        if name.startswith("mdistiller.distillers.") or name.partition(".")[0] in roots:
            del sys.modules[name]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
