"""Runs that SIGKILL ends at random moments and `--resume` continues must end as the one that nothing ended.

`python3 tests/soak/kill_and_resume.py` trains on a part of the demo's images for some minutes. Each run is killed one
to three times: in a step, a save, an evaluation, or anywhere between its first step and its end. The table says where.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import torch

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

from mdistiller.engine.checkpoint import read_checkpoint  # noqa: E402
from mdistiller.engine.log.logger import MACHINE_FIELDS  # noqa: E402
from mdistiller.engine.log.tensorboard import records  # noqa: E402

PHASES = ("step", "save", "evaluation", "anywhere")
STATES = ("latest.pth", "best.pth", "student_latest.pth", "student_best.pth")
# of a state, what is the machine's or the folder's
FREE = {"config", "train_seconds", "total_seconds", "epoch_seconds", "wandb_id"}


class Kill(NamedTuple):
    """When a process ends itself: `delay` seconds after it enters `phase` for the `nth` time, counted from 1."""

    phase: str
    nth: int
    delay: float


def differences(one: Path, other: Path) -> List[str]:
    """Return in what two runs' folders differ, except in wall-clock times, names and folders."""
    found = []
    for name in STATES:
        contents = [{k: v for k, v in read_checkpoint(run / name).items() if k not in FREE} for run in (one, other)]
        found += [f"{name}: {where}" for where in _unequal(*contents)]
    if _rows(one) != _rows(other):
        found.append("metrics.jsonl")
    if _scalars(one) != _scalars(other):
        found.append("train.events")
    return found


def _unequal(a: Any, b: Any, where: str = "") -> Iterator[str]:
    if isinstance(a, dict) and isinstance(b, dict) and set(a) == set(b):
        for key in a:
            yield from _unequal(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        for number, pair in enumerate(zip(a, b)):
            yield from _unequal(*pair, f"{where}/{number}")
    elif isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.dtype != b.dtype or not torch.equal(a, b):
            yield where
    elif a != b:
        yield where


def _rows(run: Path) -> List[Dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in MACHINE_FIELDS} for line in lines]


def _scalars(run: Path) -> List[Tuple[str, int, float]]:
    """All numbers in TensorBoard's files, those that are there twice twice."""
    events = [event for path in (run / "train.events").iterdir() for _, event in records(path.read_bytes())]
    numbers = [(value.tag, event.step, value.simple_value) for event in events for value in event.summary.value]
    return sorted(n for n in numbers if n[0].partition("/")[2] not in MACHINE_FIELDS)


def train(arguments: List[str], kill: Optional[Kill] = None) -> Tuple[int, str]:
    """Run tools/train.py in a process of its own; return its status, negative for a signal, and its output."""
    command = [sys.executable, __file__, "--child", json.dumps(kill), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=os.getcwd())
    return done.returncode, done.stdout


def child(kill: Optional[Kill], arguments: List[str]) -> None:
    """Be tools/train.py, and end as `kill` says."""
    if kill is not None:
        _arm(kill)
    sys.argv = ["tools/train.py", *arguments]
    runpy.run_path(str(REPO / "tools" / "train.py"), run_name="__main__")


def _arm(kill: Kill) -> None:
    from mdistiller.engine.evaluation.student import StudentEvaluation
    from mdistiller.engine.run.folder import RunFolder
    from mdistiller.engine.trainer import Trainer

    present, entered = ["outside"], {"n": 0}

    def end() -> None:
        time.sleep(kill.delay)
        os.write(1, f"\nkilled in: {present[-1]}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)

    def within(phase: str, owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            present.append(phase)
            if kill.phase in (phase, "anywhere"):
                entered["n"] += 1
                if entered["n"] == kill.nth:
                    threading.Thread(target=end, daemon=True).start()
            try:
                return function(*args, **kwargs)
            finally:
                present.pop()

        setattr(owner, name, call)

    within("step", Trainer, "train_step")
    within("save", RunFolder, "save_epoch")
    within("save", RunFolder, "save_state")
    within("evaluation", StudentEvaluation, "__call__")


def killed_and_resumed(arguments: List[str], folder: Path, kills: List[Kill]) -> Tuple[List[str], str]:
    """Train until the run is done, ended by each of `kills` in turn; return where each hit, and what went wrong."""
    hits = []
    for kill in [*kills, None]:
        status, output = train([*arguments, *(["--resume"] if folder.exists() else [])], kill)
        if status == 0:
            return hits, ""
        if kill is None or status != -signal.SIGKILL:
            return hits, f"status {status}: {output.strip()[-300:]}"
        hits.append(output.rpartition("killed in: ")[2].strip())
    return hits, "not done"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--cfg", default=str(REPO / "configs/demo/sfakd.yaml"))
    parser.add_argument("--folder", type=Path, default=Path("output/soak_kill"), help="replaced")
    args = parser.parse_args()
    shutil.rmtree(args.folder, ignore_errors=True)
    draw = random.Random(args.seed)
    # 9 steps an epoch, 8 batches of validation, 3 saves within an epoch and up to 4 after it
    shorter = "DATASET.TRAIN_FRACTION 0.1 SOLVER.BATCH_SIZE 64 SOLVER.EPOCHS 3 SOLVER.AMP off LOG.TENSORBOARD_FREQ 2"
    common = ["--cfg", args.cfg, *shorter.split(), "SOLVER.CHECKPOINT_EVERY", "3 steps", "LOG.PREFIX", str(args.folder)]
    status, output = train([*common, "EXPERIMENT.NAME", "whole"])
    if status != 0:
        raise SystemExit(output)
    good = 0
    print("| run | killed in | end |\n|---|---|---|", flush=True)
    for number in range(1, args.runs + 1):
        phases = [PHASES[number % len(PHASES)], *draw.choices(PHASES, k=draw.randrange(3))]
        last = {"step": 12, "save": 8, "evaluation": 3, "anywhere": 24}
        longest = {"step": 0.05, "save": 0.03, "evaluation": 0.4, "anywhere": 1.0}
        kills = [Kill(phase, draw.randint(1, last[phase]), draw.uniform(0, longest[phase])) for phase in phases]
        name = f"killed_{number}"
        hits, fault = killed_and_resumed([*common, "EXPERIMENT.NAME", name], args.folder / name, kills)
        fault = fault or ", ".join(differences(args.folder / "whole", args.folder / name))
        good += not fault
        print(f"| {number} | {', '.join(hits) or 'done before'} | {fault or 'bit-identical'} |", flush=True)
    print(f"\n{good} of {args.runs} end like the uninterrupted run (seed {args.seed})")
    sys.exit(good != args.runs)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        planned = json.loads(sys.argv[2])
        child(planned and Kill(*planned), sys.argv[3:])
    else:
        main()
