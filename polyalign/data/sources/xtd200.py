"""XTD200: XTD10's English captions translated into 200 languages by NLLB."""

from __future__ import annotations

from polyalign.data.readers.benchmark import Benchmark, FloresFiles, fixed
from polyalign.data.readers.info import PUBLISHED

INFO = PUBLISHED["xtd200"]

_FILES = FloresFiles("xtd200", names="test_image_names.txt", english="eng_Latn.txt")
Config = Benchmark
load, languages, splits = _FILES.load, _FILES.languages, fixed("test")
