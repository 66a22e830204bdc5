"""Make a folder of pictures with captions, in the place of one's own photos: scenes of the starter world."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from polyalign.config.source_spec import SourceSpec
from polyalign.data.load import load_source


def make_photos(folder: Path, count: int = 300, lang: str = "sw") -> None:
    """Write ``captions.csv`` and the pictures that it names."""
    table = load_source(SourceSpec(name="starter", options={"train_images": count}), lang, "train")
    (folder / "images").mkdir(parents=True)
    with (folder / "captions.csv").open("w", encoding="utf-8", newline="") as file:
        sheet = csv.writer(file)
        sheet.writerow(["image", "caption"])
        for number, (image, caption) in enumerate(zip(table.images, table.captions, strict=True)):
            image.open().save(folder / "images" / f"{number:04d}.jpg")
            sheet.writerow([f"{number:04d}.jpg", caption])


if __name__ == "__main__":
    make_photos(Path(sys.argv[1]))
