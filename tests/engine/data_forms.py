"""The images of a folder in the other forms that a data set may have."""

from pathlib import Path


def write_in_form(form: str, images: Path, to: Path) -> None:
    """Write an image folder as shards to `to/shards`, or as tables to `to/tables`."""
    if form == "shards":
        from mdistiller.dataset.shards.write import make_shards

        make_shards(images, to / "shards", images_per_shard=10, num_workers=0)
        return
    import datasets

    (to / "tables").mkdir()
    for part in ("train", "val"):
        files = sorted((images / part).glob("*/*"))
        rows = {
            "image": [{"bytes": file.read_bytes(), "path": None} for file in files],
            "label": [file.parent.name for file in files],
        }
        table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
        table.to_parquet(str(to / "tables" / f"{part}.parquet"))
