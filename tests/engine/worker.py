"""What test_distributed.py starts in several processes: `worker.py FOLDER METHOD …`, `KD` or, in float64, `KD-double`.

`KD-double-recipe` trains with mixed images, soft labels, steps in parts and an average of the weights.
`KD-double-views` trains with fixed views of resized crops; the processes share the teacher's outputs in a folder.
`KD-double-unlabeled` trains with mixed images, of which some have no label; neither number of them is even.
`KD-double-adam` trains by AdamW with a lower rate for the backbone, on images that a policy and erasing change.
`KD-double-shards` and `KD-double-tables` read the images from shards and tables.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Dict, List

import torch

from mdistiller import distributed
from mdistiller.engine.build import build_trainer
from mdistiller.engine.speed.fast_networks import FastNetworks
from tests.engine.test_trainer import settings

STEPS = 8
OPTIONS = [
    *("SOLVER.BATCH_SIZE", "9", "DATASET.IN_MEMORY", "yes", "CRD.NCE.K", "16", "MLKD.CONFIDENCE_MASK", "True"),
    *("SOLVER.PRECISE_BN", "3"),
    *("SP.LOSS.FEAT_WEIGHT", "30.0", "PKT.LOSS.FEAT_WEIGHT", "300.0", "OFD.LOSS.FEAT_WEIGHT", "0.0001"),
]

RECIPE = [
    *("DATASET.MIXUP", "0.8", "DATASET.CUTMIX", "1", "SOLVER.LABEL_SMOOTHING", "0.1", "SOLVER.EMA", "0.9"),
    *("SOLVER.ACCUMULATE", "2", "SOLVER.CLIP_GRAD_NORM", "0.5", "SOLVER.LAYER_DECAY", "0.8"),
    *("SOLVER.DECAY_NORMS", "False", "SOLVER.WEIGHT_DECAY", "0.01"),
]
VIEWS = [
    *("DATASET.AUGMENT", "resized_crop", "DATASET.IN_MEMORY", "no", "DATASET.VIEWS", "2", "TEACHER_CACHE"),
]
ADAM = [
    *("SOLVER.TYPE", "AdamW", "SOLVER.BACKBONE_LR_FACTOR", "0.5", "DATASET.POLICY", "trivial_augment"),
    *("DATASET.ERASING", "0.5", "DATASET.IN_MEMORY", "no"),
]
FORMS = {"shards": "webdataset", "tables": "huggingface"}


def steps(folder: str, name: str) -> Dict[str, Any]:
    """Train for `STEPS` steps; return the weights before and after, each epoch's losses, and the accuracies."""
    method, _, kind = name.partition("-")
    double, recipe = kind.startswith("double"), RECIPE if kind.endswith("recipe") else []
    if kind.endswith("unlabeled"):
        recipe = ["DATASET.UNLABELED", f"{folder}/images/train", "DATASET.UNLABELED_RATIO", "0.8", *RECIPE[:4]]
    if kind.endswith("adam"):
        recipe = ADAM
    form = kind.rpartition("-")[2]
    if form in FORMS:
        recipe = ["DATASET.TYPE", FORMS[form], "DATASET.ROOT", f"{folder}/{form}", "DATASET.IN_MEMORY", "no"]
    if kind.endswith("views"):
        recipe = [*VIEWS, f"{folder}/cache-{distributed.get_world_size()}"]
    # in float32, rounding grows from step to step; in small steps less, and SFAKD's are the largest
    rate = ["SOLVER.LR", "0.002" if double else "0.0002" if method == "SFAKD" else "0.0004"]
    trainer = build_trainer(settings(f"{folder}/images", *OPTIONS, *rate, *recipe, method=method, name=name))
    networks = None
    if kind.endswith("views"):
        networks = FastNetworks(trainer.distiller.train(), trainer.train_loader, trainer.cfg, trainer.precision, print)
        trainer.step.networks = networks
    if double:
        trainer.distiller.double()
        if networks is not None:
            networks._teacher.double()
        if trainer.step.average is not None:
            trainer.step.average.averaged.double()
    trainer.step.start_parallel(print)

    def as_needed(batch: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
        return {**trainer.in_memory_format(batch), "image": batch["image"].double() if double else batch["image"]}

    first = {key: value.clone() for key, value in trainer.distiller.state_dict().items()}
    losses: List[Dict[str, Any]] = []
    step = epoch = 0
    while step < STEPS:
        epoch += 1
        trainer.train_loader.set_epoch(epoch)
        batches = map(as_needed, trainer.train_loader)
        with networks.in_place() if networks else nullcontext():
            for number, batch in enumerate(networks.serve(batches) if networks else batches, start=1):
                own, logits = trainer.train_step(batch, epoch, step, len(trainer.train_loader))
                trainer.meter.add(number, own, logits, batch)
                step += 1
        losses.append({**trainer.meter.sync(), "averages": trainer.meter.averages()})
    state = {key: value.clone() for key, value in trainer.distiller.state_dict().items()}
    if trainer.step.average is not None:
        averages = trainer.step.average.averaged.state_dict()
        state.update({f"average.{key}": value.clone() for key, value in averages.items()})
    accuracy = trainer.validate()
    return {
        "first": first,
        "state": state,
        "losses": losses,
        "accuracy": accuracy,
        "known": networks._teacher.table.filled() if networks is not None else 0.0,
        "statistics": trainer.evaluation.statistics,
        "own_after": {
            **{key: value for key, value in state.items() if key.startswith("average.")},
            **{key: value.clone() for key, value in trainer.distiller.state_dict().items()},
        },
    }


def main() -> None:
    folder, *methods = sys.argv[1:]
    with distributed.process_group():
        as_float = torch.Tensor.float
        for method in methods:
            if "-double" in method:  # a loss asks for no more than float32, which would cost it its digits
                torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign, assignment]
            result = steps(folder, method)
            torch.Tensor.float = as_float  # type: ignore[method-assign]
            states = distributed.all_gather(
                {**result["state"], **{f"precise {k}": v for k, v in result["statistics"].items()}}
            )
            result["alike"] = all(torch.equal(states[0][key], state[key]) for state in states for key in state)
            if distributed.is_main_process():
                torch.save(result, Path(folder) / f"{method}-{distributed.get_world_size()}.pth")


if __name__ == "__main__":
    main()
