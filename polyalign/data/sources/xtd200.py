"""XTD200: XTD10's English captions translated into 200 languages by NLLB."""

from __future__ import annotations

from polyalign.data.readers.benchmark import Benchmark, FloresFiles, fixed
from polyalign.data.readers.info import COCO_PHOTOS, Info, coco_photos, github

INFO = Info(
    title="XTD200",
    folder="xtd200",
    languages="201, by FLORES-200 code",
    size="1,000 COCO 2014 images (those of XTD10), one caption each",
    origin="machine (NLLB); English human",
    licence="none stated for the translations; XTD10's is non-commercial research",
    home="https://github.com/visheratin/nllb-clip (data/xtd200)",
    captions="the folder with test_image_names.txt and <flores code>.txt",
    images=COCO_PHOTOS,
    note="800 of the images are in COCO train2014: leave them out of training (data.leakage).",
    checked="languages and sizes in the repository's files at commit 5cad452, which has no licence file",
    downloads=github(
        "visheratin/nllb-clip/5cad452a374adb2dbfbb23fb2f19d24e3959c719/data/xtd200",
        seen="CLIP_benchmark's xtd200.py names it (branch main)",
    ),
    single=coco_photos(),
)

_FILES = FloresFiles("xtd200", names="test_image_names.txt", english="eng_Latn.txt")
Config = Benchmark
load, languages, splits = _FILES.load, _FILES.languages, fixed("test")
