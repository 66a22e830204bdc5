"""Flickr30k-200: one English caption of each Flickr30k test image, translated into 200 languages by NLLB."""

from __future__ import annotations

from polyalign.data.readers.benchmark import Benchmark, FloresFiles, fixed
from polyalign.data.readers.info import FLICKR30K_PHOTOS, Info, github

INFO = Info(
    title="Flickr30k-200",
    folder="flickr30k-200",
    languages="201, by FLORES-200 code",
    size="1,000 Flickr30k test images, one caption each",
    origin="machine (NLLB); English human",
    licence="none stated for the translations; Flickr30k is for research and education, non-commercial",
    home="https://github.com/visheratin/nllb-clip (data/flickr30k-200)",
    captions="the folder with filenames.txt and <flores code>.txt",
    images=f"{FLICKR30K_PHOTOS} (Flickr8k's photos are found too, 243 of the 1,000)",
    note="The images are those of Multi30k test 2016 and of xFlickr&CO; 173 are in Flickr8k's training split.",
    checked="languages and sizes in the repository's files at commit 5cad452, which has no licence file",
    downloads=github(
        "visheratin/nllb-clip/5cad452a374adb2dbfbb23fb2f19d24e3959c719/data/flickr30k-200",
        seen="CLIP_benchmark's flickr30k_200.py names it (branch main)",
    ),
)

_FILES = FloresFiles("flickr30k-200", names="filenames.txt", english="eng_captions.txt")
Config = Benchmark
load, languages, splits = _FILES.load, _FILES.languages, fixed("test")
