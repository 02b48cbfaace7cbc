"""A trained student as a `torch.nn.Module` that knows its classes and how images are prepared.

Shapes: `B` batch, `S` side in pixels, `K` classes.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from typing import Any, List, Sequence, Tuple, Union

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..dataset.images.pictures import as_picture
from ..dataset.loading.normalizer import Normalizer
from ..dataset.loading.splits import FileSplit
from ..errors import UserError
from ..export.card import model_card
from ..export.predict import BATCH, Guess, likeliest
from ..export.source import Source, read_source, to_input
from ..models.adapters.given_models import given_models
from ..paths import user_path

OneImage = Union[str, "os.PathLike[str]", Image.Image, np.ndarray, Tensor]


class Student(nn.Module):
    """A deployed student: backbone, head, and normalization.

    It is in evaluation mode, in float32, on the CPU, and its parameters do not require gradients. Move it as any other
    module: `student.to("cuda")`.

    Args:
        source: the student and its description, as `read_source` returns them.

    Attributes:
        classes: the K class names, in the order of the logits.
        input_size: the side `S` of the images, in pixels.
        network: the backbone and the head, without the normalization.
        source: the description of the checkpoint, without its weights.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, source: Source) -> None:
        super().__init__()
        about = {key: value for key, value in source.checkpoint.items() if key not in ("model", "head")}
        self.source = replace(source, checkpoint=about)
        self.classes: Tuple[str, ...] = source.info.classes
        self.input_size = source.view.size
        # the memory format of training, so that rounding is the same
        self.network = source.student.to(memory_format=torch.channels_last)
        normalize = Normalizer(source.info, torch.device("cpu"))
        self.register_buffer("scale", normalize.scale, persistent=False)
        self.register_buffer("shift", normalize.shift, persistent=False)
        self.eval()

    @cached_property
    def card(self) -> str:
        """The model card, Markdown: classes, data, teacher, accuracy that training recorded, cost."""
        about = self.source.checkpoint
        return model_card(self.source, f"{about['arch']} for {about['dataset']}", "float32")

    def forward(self, image: Tensor) -> Tensor:
        """Return logits float32 `[B, K]` of images float32 `[B, 3, S, S]`, RGB in [0, 1], as `transform` makes them."""
        pixels = image.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1) * 255
        return self.network(torch.addcmul(self.shift, pixels, self.scale).permute(0, 3, 1, 2))

    def transform(self, image: OneImage) -> Tensor:
        """Return an image as validation prepares it: float32 `[3, S, S]`, RGB in [0, 1], resized and cropped.

        Args:
            image: the path of a file, or see `as_picture`: a PIL image, an array `[H, W, 3]`, a tensor `[3, H, W]`.

        Raises:
            UserError: it cannot be read, or has another type, shape or range.
        """
        return to_input(self._pixels(image)[None])[0]

    def predict(self, images: Union[OneImage, Sequence[OneImage]], k: int = 5) -> Any:
        """Return the `k` likeliest classes of an image, or of each of several images, as tools/predict.py prints them.

        Args:
            images: one image of any kind that `transform` takes; or a list of them, an array `[B, H, W, 3]`, or a
                tensor `[B, 3, H, W]`.
            k: the number of classes to return, at least 1. At most all classes are returned.

        Returns:
            A list of `Guess` (`name`, `index`, `probability` from 0 to 1), the likeliest first; for several images a
            list of such lists.

        Raises:
            UserError: an image cannot be read, or has another type, shape or range; or `k` is invalid.
        """
        if not isinstance(k, int) or isinstance(k, bool) or k < 1:
            raise UserError(f"k is {k!r}; expected a whole number of at least 1")
        if isinstance(images, (np.ndarray, Tensor)) and images.ndim == 4:
            images = list(images)
        if not isinstance(images, (list, tuple)):
            return self._guesses([images], k)[0]
        found: List[List[Guess]] = []
        for start in range(0, len(images), BATCH):
            found += self._guesses(images[start : start + BATCH], k)
        return found

    def _guesses(self, images: Sequence[Any], k: int) -> List[List[Guess]]:
        batch = to_input(torch.stack([self._pixels(image) for image in images])).to(self.scale.device)
        with torch.inference_mode():
            return likeliest(self(batch), self.classes, k)

    def _pixels(self, image: OneImage) -> Tensor:
        """Return an image as validation sees it, uint8 [S, S, 3]."""
        if isinstance(image, (str, os.PathLike)):
            path = user_path(image)
            if path.is_dir():
                raise UserError(f"{path} is a folder; give its images as a list of paths")
            picture = FileSplit([path], [0]).load(0, self.source.view)
        else:
            picture = self.source.view(as_picture(image))
        return torch.from_numpy(np.array(picture))


def load(
    path: Union[str, os.PathLike[str]], model: Union[nn.Module, str, None] = None, plugins: Sequence[str] = ()
) -> Student:
    """Load the student of a run.

    Args:
        path: `student_best.pth` or another checkpoint of a student, a `.safetensors` export, or the folder of a run.
        model: the student's backbone, if it was one of your own: the object, of which a copy gets the weights, or the
            name of code that builds it, such as `my_package.models:make` or `path/to/file.py:make`. A file never
            chooses by itself which code runs.
        plugins: files with the plug-ins that the student was trained with.

    Raises:
        UserError: the file is missing, damaged, or no student; or it needs `model` or `plugins`.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise UserError(f"path is a {type(path).__name__}; expected the path of a checkpoint or of the folder of a run")
    if isinstance(plugins, (str, os.PathLike)):
        plugins = [os.fspath(plugins)]
    if not (model is None or isinstance(model, (nn.Module, str))):
        raise UserError(f"model is a {type(model).__name__}; expected a torch.nn.Module, or the name of code")
    with ExitStack() as stack:
        name = model if isinstance(model, str) else ""
        if isinstance(model, nn.Module):
            name = stack.enter_context(given_models(student=model))["student"]
        return Student(read_source(path, ["PLUGINS", repr(list(map(str, plugins)))] if plugins else [], name))
