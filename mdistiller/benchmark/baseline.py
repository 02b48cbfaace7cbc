"""The baseline of speed measurements: MDistiller's training loop in plain PyTorch.

Images are stored as arrays. Two worker processes, which restart in each epoch, convert them to PIL images and augment
them one by one with torchvision. Everything is float32 in contiguous memory. The frozen teacher runs in every step, and
the optimizer is SGD with PyTorch's default implementation. The host reads loss and accuracies in every step for a
progress bar, which is redrawn in every step.

The loss is KD's for every method, because MDistiller has no SFAKD; without a teacher it is the cross-entropy. Unlike in
MDistiller, the models are this package's, and there is no DataParallel. Both can only make the baseline faster.
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
from yacs.config import CfgNode

from ..dataset import DatasetInfo, DeviceLoader, get_dataset
from ..distillers import distiller_dict
from ..engine.build import seed_everything
from ..engine.networks.build import build_student, build_teacher
from ..engine.speed.precision import pick_device
from ..errors import UserError

NUM_WORKERS = 2

Batches = Callable[[], Iterable[Dict[str, Tensor]]]


class PILDataset(Dataset):
    """Augments one image at a time, with PIL.

    Args:
        images: the images, uint8 `[N, S, S, 3]`.
        targets: the `N` labels.
        info: the images' size and normalization.
        padding: zeros on each side before the random crop, in pixels.
        flip: whether to flip images at random.
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


def baseline_loss(logits: Tensor, logits_teacher: Optional[Tensor], target: Tensor, kd: Any) -> Tensor:
    """Return KD's loss, or the cross-entropy without a teacher.

    Args:
        logits, logits_teacher: the logits of the student and of the teacher, float `[B, N]`.
        target: the labels, int64 `[B]`.
        kd: the config section `KD`, with the weights and the temperature.
    """
    ce_loss = F.cross_entropy(logits, target)
    if logits_teacher is None:
        return ce_loss
    probs_teacher = F.softmax(logits_teacher / kd.TEMPERATURE, dim=1)
    log_probs = F.log_softmax(logits / kd.TEMPERATURE, dim=1)
    kd_loss = F.kl_div(log_probs, probs_teacher, reduction="none").sum(1).mean() * kd.TEMPERATURE**2
    return kd.LOSS.CE_WEIGHT * ce_loss + kd.LOSS.KD_WEIGHT * kd_loss


class _AverageMeter:
    """A weighted running average."""

    def __init__(self) -> None:
        self.sum = self.count = 0.0

    def update(self, value: float, weight: float = 1) -> float:
        self.sum += value * weight
        self.count += weight
        return self.sum / self.count


class BaselineLoop:
    """The data, models and optimizer of the baseline's training loop.

    Args:
        cfg: the configuration, as for `build_trainer`. From `SOLVER`, only the batch size and the settings of SGD are
            used; `DATASET.NUM_WORKERS` is ignored.

    Raises:
        UserError: the images are not in memory, or are not augmented by padding, cropping and flipping.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.device = pick_device()
        source, *_ = get_dataset(cfg, "cpu")
        if not isinstance(source, DeviceLoader) or source.augment != "pad_crop":
            raise UserError(
                "the baseline loop needs images in memory with DATASET.AUGMENT pad_crop; these are"
                f" {'in memory' if isinstance(source, DeviceLoader) else 'streamed'}, with {source.augment};"
                " set DATASET.AUGMENT pad_crop DATASET.IN_MEMORY yes, or leave out --baseline"
            )
        info, inner = source.info, slice(source.padding, source.padding + source.info.input_size)
        images = source.images[:, inner, inner].contiguous().numpy()
        self.loader: DataLoader = DataLoader(
            PILDataset(images, source.targets.tolist(), info, source.padding, source.flip),
            batch_size=cfg.SOLVER.BATCH_SIZE,
            shuffle=True,
            num_workers=NUM_WORKERS,
        )
        torch.backends.cudnn.benchmark = True
        seed_everything(cfg.EXPERIMENT.SEED)
        self.kd = cfg.KD
        self.teacher: Optional[nn.Module] = None
        if distiller_dict[cfg.DISTILLER.TYPE].needs_teacher:
            self.teacher = build_teacher(cfg, info).to(self.device).requires_grad_(False).eval()
        self.student = build_student(cfg, info).to(self.device)
        self.optimizer = torch.optim.SGD(
            self.student.parameters(), cfg.SOLVER.LR, cfg.SOLVER.MOMENTUM, weight_decay=cfg.SOLVER.WEIGHT_DECAY
        )

    def train_epoch(self, batches: Batches) -> str:
        """Train for one epoch on `batches()`, the batches of `self.loader`; return the last step's message."""
        self.student.train()
        meters = [_AverageMeter() for _ in range(5)]
        message = ""
        # the bar is formatted as for a terminal, and discarded
        with open(os.devnull, "w") as devnull, tqdm(total=len(self.loader), file=devnull) as bar:
            ended = time.perf_counter()
            for batch in batches():
                started = time.perf_counter()
                metrics = self.step(batch)
                values = (started - ended, time.perf_counter() - started, *metrics)
                weights = (1, 1, *[len(batch["target"])] * 3)
                means = [meter.update(value, weight) for meter, value, weight in zip(meters, values, weights)]
                message = "data {:.3f} s, step {:.3f} s, loss {:.4f}, top-1 {:.2f}, top-5 {:.2f}".format(*means)
                bar.set_description(message)
                bar.update()
                ended = time.perf_counter()
        return message

    def step(self, batch: Dict[str, Tensor]) -> List[float]:
        """Train on one batch; return its loss, and its top-1 and top-5 accuracy in percent."""
        self.optimizer.zero_grad()
        image, target = (batch[key].to(self.device, non_blocking=True) for key in ("image", "target"))
        logits_teacher = None
        if self.teacher is not None:
            with torch.no_grad():
                logits_teacher = self.teacher(image)[0]
        logits = self.student(image)[0]
        loss = baseline_loss(logits, logits_teacher, target, self.kd)
        loss.backward()
        self.optimizer.step()
        correct = logits.topk(min(5, logits.shape[1]), dim=1).indices.cpu() == target.cpu()[:, None]
        return [loss.item(), *(100 * correct[:, :k].any(1).float().mean().item() for k in (1, 5))]
