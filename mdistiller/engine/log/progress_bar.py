"""The progress bar of an epoch."""

from __future__ import annotations

from tqdm import tqdm

from ... import distributed


def progress_bar(title: str, num_images: int, done: int = 0) -> tqdm:
    """Return a bar that counts images.

    It is disabled if stderr is not a terminal, and in all processes except the main one.

    Args:
        title: the text that stands before the bar.
        num_images: the number of images of the epoch.
        done: the number of images already processed in a resumed epoch.
    """
    return tqdm(
        total=num_images,
        initial=done,
        desc=title,
        unit="img",
        leave=False,
        disable=None if distributed.is_main_process() else True,  # None: unless stderr is a terminal
    )
