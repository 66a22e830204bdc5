"""Flickr30k-200: one English caption of each Flickr30k test image, translated into 200 languages by NLLB."""

from __future__ import annotations

from polyalign.data.readers.benchmark import Benchmark, FloresFiles, fixed
from polyalign.data.readers.info import PUBLISHED

INFO = PUBLISHED["flickr30k-200"]

_FILES = FloresFiles("flickr30k-200", names="filenames.txt", english="eng_captions.txt")
Config = Benchmark
load, languages, splits = _FILES.load, _FILES.languages, fixed("test")
