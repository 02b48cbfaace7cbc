"""EXIF orientation: an image that is stored turned gives the same pixels as the upright one, in every code path."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from mdistiller.dataset import FileSplit, get_dataset, get_val_loader
from mdistiller.dataset.images import decode, orientation
from mdistiller.dataset.images.decode import View, decode_region
from mdistiller.dataset.images.orientation import upright, upright_size
from mdistiller.dataset.loading.stream_loader import resized_crop

Make = Callable[..., Any]
STORED_AS = {  # how a camera in that orientation stores an upright image
    1: lambda image: image,
    2: ImageOps.mirror,
    3: lambda image: image.rotate(180),
    4: ImageOps.flip,
    5: lambda image: ImageOps.mirror(image).rotate(90, expand=True),
    6: lambda image: image.rotate(90, expand=True),
    7: lambda image: ImageOps.mirror(image).rotate(-90, expand=True),
    8: lambda image: image.rotate(-90, expand=True),
}
LOSSLESS: Dict[str, Dict[str, Any]] = {".png": {}, ".tif": {}, ".webp": {"lossless": True, "exact": True}}
TRANSFORMS = [View(16, margin=False), View(40, margin=True), *(lambda i, s=s: resized_crop(i, 12, s) for s in range(6))]


def exif(number: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = number
    return tags


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return an image without fine detail or symmetry."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def shown(path: Path, transform: Any) -> np.ndarray:
    return np.asarray(FileSplit([path], [0]).load(0, transform)).astype(int)


def assert_like(path: Path, expected: Path, on_average: float = 0.0) -> None:
    for transform in (*TRANSFORMS, upright):
        one, other = shown(path, transform), shown(expected, transform)
        assert one.shape == other.shape
        assert np.abs(one - other).mean() <= on_average, (path.name, transform)


@pytest.mark.parametrize("suffix", LOSSLESS)
@pytest.mark.parametrize("number", STORED_AS)
def test_all_eight_are_shown_as_the_upright_picture(tmp_path: Path, suffix: str, number: int) -> None:
    whole = picture(61, 44)
    whole.save(tmp_path / f"upright{suffix}", **LOSSLESS[suffix])
    STORED_AS[number](whole).save(tmp_path / f"stored{suffix}", exif=exif(number), **LOSSLESS[suffix])
    assert_like(tmp_path / f"stored{suffix}", tmp_path / f"upright{suffix}")


@pytest.mark.parametrize("number", STORED_AS)
def test_a_small_jpeg_is_what_pillow_makes_of_it(tmp_path: Path, number: int) -> None:
    STORED_AS[number](picture(61, 44)).save(tmp_path / "stored.jpg", quality=95, exif=exif(number))
    with Image.open(tmp_path / "stored.jpg") as image:
        assert upright_size(image) == (61, 44)
        ImageOps.exif_transpose(image).save(tmp_path / "upright.png", exif=b"")
    assert_like(tmp_path / "stored.jpg", tmp_path / "upright.png")


@pytest.mark.parametrize("size", [(653, 489), (488, 656)])  # multiples of 8 or not, which rounds the edges
@pytest.mark.parametrize("number", STORED_AS)
def test_a_large_jpeg_is_decoded_at_a_reduced_scale(
    tmp_path: Path, number: int, size: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    STORED_AS[number](picture(*size)).save(tmp_path / "stored.jpg", quality=95, subsampling=0, exif=exif(number))
    with Image.open(tmp_path / "stored.jpg") as image:
        ImageOps.exif_transpose(image).save(tmp_path / "upright.png", exif=b"")
    sizes: List[int] = []
    real = Image.Image.convert
    monkeypatch.setattr(Image.Image, "convert", lambda self, mode: sizes.append(max(self.size)) or real(self, mode))
    shown(tmp_path / "stored.jpg", View(16, margin=False))
    assert sizes == [82]
    monkeypatch.undo()
    # of 255, the difference due to the reduced scale; a wrong orientation gives 20 and more
    assert_like(tmp_path / "stored.jpg", tmp_path / "upright.png", on_average=2.0)


@pytest.mark.parametrize("number", STORED_AS)
def test_edges_are_where_they_are(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The image has a sharp corner, and one pixel more per side than a multiple of the scale."""
    pixels = np.zeros((801, 801, 3), dtype=np.uint8)
    pixels[400:, 400:] = 255
    STORED_AS[number](Image.fromarray(pixels)).save(tmp_path / "a.jpg", quality=95, subsampling=0, exif=exif(number))

    def corner() -> np.ndarray:
        return shown(tmp_path / "a.jpg", lambda image: decode_region(image, (360, 360, 440, 440), (5, 5)))

    reduced = corner()
    monkeypatch.setattr(decode, "SCALES", ())
    assert np.abs(reduced - corner()).max() <= 4


@pytest.fixture
def folders(tmp_path: Path) -> List[Path]:
    """Return two image folders with the same images: stored upright, and in all eight orientations."""
    for name in ("upright", "turned"):
        for part in ("train", "val"):
            for label in range(2):
                folder = tmp_path / name / part / f"class_{label}"
                folder.mkdir(parents=True)
                for number in STORED_AS:
                    whole = picture(61, 44, seed=10 * label + number)
                    if name == "turned":
                        STORED_AS[number](whole).save(folder / f"{number}.png", exif=exif(number))
                    else:
                        whole.save(folder / f"{number}.png")
    return [tmp_path / "upright", tmp_path / "turned"]


@pytest.mark.parametrize(
    "keys",
    [{}, {"IN_MEMORY": "no", "NUM_WORKERS": 1}, {"AUGMENT": "resized_crop"}, {"TYPE": "imagenet", "INPUT_SIZE": 24}],
)
def test_both_folders_give_the_same_batches(make_cfg: Make, folders: List[Path], collect: Make, keys: Any) -> None:
    cfgs = [make_cfg(**{"TYPE": "imagefolder", "INPUT_SIZE": 16, "ROOT": str(root), **keys}) for root in folders]
    one, other = (get_dataset(cfg, "cpu") for cfg in cfgs)
    assert one[0].info == other[0].info, "mean and std are measured on upright pictures"
    for expected, found in zip(
        (*one[:2], get_val_loader(cfgs[0], "cpu")), (*other[:2], get_val_loader(cfgs[1], "cpu"))
    ):
        batches = collect(found)
        assert all(torch.equal(value, batches[key]) for key, value in collect(expected).items())


def test_annotated_validation_images_of_tiny_imagenet(make_cfg: Make, folders: List[Path], collect: Make) -> None:
    seen = []
    for root in folders:
        images_of_val = root / "val" / "images"
        images_of_val.mkdir()
        rows = []
        for label in range(2):
            for path in sorted((root / "val" / f"class_{label}").iterdir()):
                path.rename(images_of_val / f"{label}_{path.name}")
                rows.append(f"{label}_{path.name}\tclass_{label}\n")
        (root / "val" / "val_annotations.txt").write_text("".join(rows))
        seen.append(collect(get_val_loader(make_cfg(TYPE="tiny_imagenet", ROOT=str(root)), "cpu")))
    assert torch.equal(seen[0]["image"], seen[1]["image"])


@pytest.mark.parametrize("keys", [{}, {"IN_MEMORY": "no"}])
def test_turned_pictures_are_counted(
    make_cfg: Make, folders: List[Path], caplog: pytest.LogCaptureFixture, keys: Any
) -> None:
    given = {"INPUT_SIZE": 16, "MEAN": [0.5] * 3, "STD": [0.25] * 3}
    for _ in range(2):  # the second time, the report on a streamed set comes from the cache
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="mdistiller"):
            get_dataset(make_cfg(TYPE="imagefolder", ROOT=str(folders[1]), **given, **keys), "cpu")
        assert [record.getMessage() for record in caplog.records] == [
            "14 of 16 training images are turned upright by their EXIF orientation",
            "14 of 16 validation images are turned upright by their EXIF orientation",
        ]


DAMAGED = {
    "no EXIF at all": b"Exif\0\0garbage!",
    "an entry that is cut off": b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\x01",
    "an orientation that is none": exif(9).tobytes(),
    "a directory that is cut off": b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
}


@pytest.fixture
def as_outside_of_tests() -> Iterator[None]:
    """Apply the package's own filters to Pillow's warnings; other warnings stay errors."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", orientation.PILLOW_WARNS, UserWarning)
        yield


@pytest.mark.usefixtures("as_outside_of_tests")
@pytest.mark.parametrize("keys", [{}, {"IN_MEMORY": "no"}])
@pytest.mark.parametrize("dpi", [None, (72, 72)])  # without dpi, Pillow reads EXIF data when it opens the file
@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_exif_is_no_reason_to_refuse(
    make_cfg: Make, folders: List[Path], caplog: pytest.LogCaptureFixture, kind: str, dpi: Any, keys: Any
) -> None:
    path = folders[0] / "train" / "class_0" / "x.jpg"
    picture(61, 44).save(path, exif=DAMAGED[kind], **({"dpi": dpi} if dpi else {}))
    given = {"INPUT_SIZE": 16, "MEAN": [0.5] * 3, "STD": [0.25] * 3}
    with caplog.at_level(logging.INFO, logger="mdistiller"):
        assert get_dataset(make_cfg(TYPE="imagefolder", ROOT=str(folders[0]), **given, **keys), "cpu")[2] == 17
    lines = [record.getMessage() for record in caplog.records]
    turned = kind == "an entry that is cut off"  # the damage comes after the orientation, which Pillow has already read
    assert shown(path, upright).shape == ((61, 44, 3) if turned else (44, 61, 3))
    if kind == "no EXIF at all":
        assert lines == ["1 of 17 training images have damaged EXIF data; they are used as they are stored"]
    else:
        assert lines == ["1 of 17 training images are turned upright by their EXIF orientation"] * turned
    assert len(lines) <= 1


def test_what_was_cached_of_sideways_pictures_is_not_used(folders: List[Path]) -> None:
    import hashlib

    path = folders[1] / "train" / "class_0" / "6.png"
    about = path.stat()
    before = f"class_0/6.png {about.st_size} {about.st_mtime_ns}\n"
    assert FileSplit([path], [0]).digest() != hashlib.sha256(before.encode()).hexdigest()
    missing = FileSplit([path.with_name("gone.png")], [0])
    assert missing.digest() == missing.digest() != FileSplit([path], [0]).digest()


def test_statistics_remembered_of_sideways_pictures_are_measured_again(
    make_cfg: Make, folders: List[Path], cache: Path
) -> None:
    cfg = make_cfg(TYPE="imagefolder", ROOT=str(folders[1]), INPUT_SIZE=16)
    right = get_dataset(cfg, "cpu")[0].info
    (file,) = cache.glob("statistics/*.json")
    settings = "View(size=16, margin=False), upright, all images"
    assert f'"settings": "{settings}"' in file.read_text()
    before = file.read_text().replace(", upright", "").replace('"mean": [', '"mean": [\n0.9, 0.9, 0.9, ')
    file.write_text(before)
    assert get_dataset(cfg, "cpu")[0].info == right
