"""What tests/engine/test_processes.py has torchrun start: `worker.py TASK FOLDER [WORD …]`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Dict, List

import torch

from mdistiller import processes
from mdistiller.engine.build import build_trainer
from tests.engine.test_trainer import settings

STEPS = 20
OPTIONS = [
    *("SOLVER.BATCH_SIZE", "9", "DATASET.IN_MEMORY", "yes", "CRD.NCE.K", "16", "LOG.WANDB", "False"),
    *("MLKD.CONFIDENCE_MASK", "True", "REVIEWKD.WARMUP_EPOCHS", "1", "SP.LOSS.FEAT_WEIGHT", "30.0"),
    *("PKT.LOSS.FEAT_WEIGHT", "300.0", "OFD.LOSS.FEAT_WEIGHT", "0.0001", "SOLVER.LR", "0.0005"),
]


def steps(folder: str, method: str, *more: str) -> Dict[str, Any]:
    """Train for some steps, in several epochs; return the weights and the summed losses of each epoch."""
    trainer = build_trainer(settings(f"{folder}/images", *OPTIONS, *more, method=method, name=method))
    trainer.start_parallel()
    first = {k: v.clone() for k, v in trainer.distiller.state_dict().items()}
    losses: List[Dict[str, float]] = []
    step = epoch = 0
    while step < STEPS:
        epoch += 1
        trainer.train_loader.set_epoch(epoch)
        for number, batch in enumerate(trainer.train_loader.iterate(), start=1):
            own, logits = trainer._step(trainer.as_taken(batch), epoch, step, len(trainer.train_loader))
            trainer.meter.add(number, own, logits, batch)
            step += 1
        losses.append({**trainer.meter.sync(), "averages": trainer.meter.averages()})
    state = {k: v.clone() for k, v in trainer.distiller.state_dict().items()}
    accuracy = trainer._validate()
    return {"first": first, "state": state, "losses": losses, "accuracy": accuracy}


def main() -> None:
    folder, *methods = sys.argv[1:]
    with processes.joined():
        for method in methods:
            name, *more = method.split(",")
            result = steps(folder, name, *more)
            states = processes.all_of(result["state"])
            result["alike"] = all(torch.equal(states[0][key], state[key]) for state in states for key in state)
            if processes.is_first():
                torch.save(result, Path(folder) / f"{method}-{processes.count()}.pth")


if __name__ == "__main__":
    main()
