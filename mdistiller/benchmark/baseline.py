"""The yardstick of speed: a training loop as MDistiller's, in plain PyTorch.

What makes it that: images held as arrays, made PIL images and augmented one by one by torchvision in two worker
processes, which start anew in each epoch; float32, contiguous memory; the frozen teacher run in every step; SGD as
torch picks it; loss and accuracies read by the host in every step, for a progress bar that is rewritten in every step.
The loss is KD's whatever is measured, since MDistiller has no SFAKD (without a teacher, cross-entropy alone). Models
are this package's, and nothing is wrapped in DataParallel: both can only make it faster.
"""

from __future__ import annotations

import os
import time
from typing import Any, Callable, Dict, Iterable, List, Optional

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from tqdm import tqdm

from ..dataset import DatasetInfo, DeviceLoader, get_dataset
from ..distillers import distiller_dict
from ..engine.build import build_teacher, seed_everything
from ..engine.speed.precision import pick_device
from ..errors import UserError
from ..models import build_model

WORKERS = 2

Batches = Callable[[], Iterable[Dict[str, Tensor]]]


class PilImages(Dataset):
    """Images as PIL sees them, one at a time.

    Args:
        images: uint8 `[N, S, S, 3]`.
        targets: N labels.
        info: for size and normalisation.
        padding: zeros on each side before the random crop, in pixels.
        flip: whether half of the images are mirrored.
    """

    def __init__(self, images: np.ndarray, targets: List[int], info: DatasetInfo, padding: int, flip: bool) -> None:
        self.images = images
        self.targets = targets
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(info.input_size, padding=padding),
                *([transforms.RandomHorizontalFlip()] if flip else []),
                transforms.ToTensor(),
                transforms.Normalize(info.mean, info.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Dict[str, Any]:
        image = self.transform(Image.fromarray(self.images[index]))
        return {"image": image, "target": self.targets[index], "index": index}


def plain_loss(logits: Tensor, logits_teacher: Optional[Tensor], target: Tensor, kd: Any) -> Tensor:
    """Return the scalar loss of logits `[B, N]`, with the weights and the temperature of the config section `KD`."""
    cross_entropy = F.cross_entropy(logits, target)
    if logits_teacher is None:
        return cross_entropy
    soft = F.softmax(logits_teacher / kd.TEMPERATURE, dim=1)
    log_soft = F.log_softmax(logits / kd.TEMPERATURE, dim=1)
    divergence = F.kl_div(log_soft, soft, reduction="none").sum(1).mean() * kd.TEMPERATURE**2
    return kd.LOSS.CE_WEIGHT * cross_entropy + kd.LOSS.KD_WEIGHT * divergence


class _Average:
    """Of everything so far, weighted."""

    def __init__(self) -> None:
        self.sum = self.count = 0.0

    def add(self, value: float, weight: float = 1) -> float:
        self.sum += value * weight
        self.count += weight
        return self.sum / self.count


class PlainLoop:
    """Data, models and optimizer of the loop.

    Args:
        cfg: as for `build_trainer`; of `SOLVER` only the batch size and SGD's figures count, of `DATASET` not the
            workers.

    Raises:
        UserError: the images do not lie in memory, or are not augmented by padding, cropping and flipping.
    """

    def __init__(self, cfg: Any) -> None:
        self.device = pick_device()
        source, _, _, num_classes = get_dataset(cfg, "cpu")
        if not isinstance(source, DeviceLoader) or source.augment != "pad_crop":
            raise UserError(
                f"the baseline loop takes images in memory with DATASET.AUGMENT pad_crop, these are"
                f" {'in memory' if isinstance(source, DeviceLoader) else 'streamed'}, with {source.augment};"
                " set DATASET.AUGMENT pad_crop DATASET.IN_MEMORY yes, or leave out --baseline"
            )
        info, inner = source.info, slice(source.padding, source.padding + source.info.input_size)
        images = source.images[:, inner, inner].contiguous().numpy()
        self.loader: DataLoader = DataLoader(
            PilImages(images, source.targets.tolist(), info, source.padding, source.flip),
            batch_size=cfg.SOLVER.BATCH_SIZE,
            shuffle=True,
            num_workers=WORKERS,
        )
        torch.backends.cudnn.benchmark = True
        seed_everything(cfg.EXPERIMENT.SEED)
        self.kd = cfg.KD
        self.teacher: Optional[nn.Module] = None
        if distiller_dict[cfg.DISTILLER.TYPE].needs_teacher:
            self.teacher = build_teacher(cfg, info).to(self.device).requires_grad_(False).eval()
        self.student = build_model(cfg.DISTILLER.STUDENT, num_classes, info.name, info.input_size).to(self.device)
        self.optimizer = torch.optim.SGD(
            self.student.parameters(), cfg.SOLVER.LR, cfg.SOLVER.MOMENTUM, weight_decay=cfg.SOLVER.WEIGHT_DECAY
        )

    def train_epoch(self, batches: Batches) -> str:
        """Train on `batches()`, of `self.loader`; return the last step's message."""
        self.student.train()
        averages = [_Average() for _ in range(5)]
        message = ""
        # written as to a terminal, which costs more, but to nowhere
        with open(os.devnull, "w") as nowhere, tqdm(total=len(self.loader), file=nowhere) as bar:
            fetching = time.perf_counter()
            for batch in batches():
                started = time.perf_counter()
                figures = self.step(batch)
                values = (started - fetching, time.perf_counter() - started, *figures)
                weights = (1, 1, *[len(batch["target"])] * 3)
                means = [average.add(*pair) for average, pair in zip(averages, zip(values, weights))]
                message = "data {:.3f} s, step {:.3f} s, loss {:.4f}, top-1 {:.2f}, top-5 {:.2f}".format(*means)
                bar.set_description(message)
                bar.update()
                fetching = time.perf_counter()
        return message

    def step(self, batch: Dict[str, Tensor]) -> List[float]:
        """Train on one batch; return its loss, and top-1 and top-5 in percent."""
        self.optimizer.zero_grad()
        image, target = (batch[key].to(self.device, non_blocking=True) for key in ("image", "target"))
        logits_teacher = None
        if self.teacher is not None:
            with torch.no_grad():
                logits_teacher = self.teacher(image)[0]
        logits = self.student(image)[0]
        loss = plain_loss(logits, logits_teacher, target, self.kd)
        loss.backward()
        self.optimizer.step()
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices.cpu() == target.cpu()[:, None]
        return [loss.item(), *(100 * ranked[:, :k].any(1).float().mean().item() for k in (1, 5))]
