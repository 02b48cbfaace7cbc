"""A small study, and a launcher that runs its cells in this process."""

from concurrent.futures import Future

import pytest

from mdistiller.cli import OneLineParser
from mdistiller.engine.build import build_trainer
from mdistiller.engine.validate import load_valid_cfg
from mdistiller.errors import UserError
from tests.conftest import make_image_folder

STUDY = """
PAIRS:
  small: {TEACHER: resnet14, STUDENT: resnet8}
TEACHER: {}
ALONE: {}
METHODS:
  KD: {DISTILLER: {TYPE: KD}}
  SFAKD: {DISTILLER: {TYPE: SFAKD}}
SEEDS: [0, 1]
SETTINGS:
  DATASET: {TYPE: imagefolder, ROOT: images, INPUT_SIZE: 16, NUM_WORKERS: 0}
  SOLVER: {EPOCHS: 1, BATCH_SIZE: 8, SCHEDULE: linear, AMP: "off"}
"""


@pytest.fixture
def place(tmp_path):
    """A folder, which is the working directory, with a study and its images."""
    make_image_folder(tmp_path / "images")
    (tmp_path / "small.yaml").write_text(STUDY)
    return tmp_path


class InThisProcess:
    """A launcher whose runs end before `submit` returns."""

    def __init__(self, limit=1):
        self.limit = limit
        self.jobs = []

    def submit(self, job):
        self.jobs.append(job)
        parser = OneLineParser()
        parser.add_argument("--cfg")
        parser.add_argument("--resume", action="store_true")
        parser.add_argument("--overwrite", action="store_true")
        args = parser.parse_args(job.command_arguments())
        future = Future()
        try:
            cfg = load_valid_cfg(args.cfg, [], args.resume)
            build_trainer(cfg, validate=False).train(args.resume, args.overwrite)
            future.set_result("")
        except UserError as error:
            future.set_result(f"{error} (status 2)")
        return future

    def stop(self):
        pass


@pytest.fixture
def launcher(monkeypatch):
    monkeypatch.setattr("mdistiller.study.runner.POLL_SECONDS", 0.0)
    return InThisProcess()
