"""The two benchmarks that NLLB translated into 200 languages: one file a FLORES-200 code, one line an image."""

from __future__ import annotations

from polyalign.config import language as langs
from polyalign.config.language import Lang
from polyalign.data.pairs import Origin, PairTable
from polyalign.data.readers import benchmark as _benchmark
from polyalign.data.readers import files as _files
from polyalign.data.readers.benchmark import Benchmark
from polyalign.utils.errors import UserError, did_you_mean


def load(benchmark: str, config: Benchmark, lang: Lang, split: str, *, names: str, english: str) -> PairTable:
    """Load the captions of a language: machine translations, but for the English that they were made from.

    ``names`` is the list of image names, ``english`` the file of the English captions.

    Raises:
        UserError: no such language or split, a file is missing, lines do not belong together, images are missing.
    """
    _benchmark.only_splits(benchmark, split, ("test",))
    root = _files.folder(config.root, f"source.root, the folder with {names}")
    if lang.flores is None:
        raise UserError(f'{benchmark} knows languages by FLORES-200 codes, and langs/{lang.code}.toml has no "flores"')
    captions = root / _file(lang, english)
    if not captions.is_file():
        known = sorted(path.stem for path in root.glob("*_*.txt") if path.name != names)
        raise UserError(f"{benchmark} has no captions in {lang.code} ({captions}): {did_you_mean(lang.flores, known)}")
    pairs = _benchmark.aligned(_files.existing(root / names, what="list of image names"), captions)
    origin: Origin = "human" if lang.code == "en" else "machine"
    return _benchmark.table(f"{benchmark}-{split}", lang, origin, pairs, config)


def languages(config: Benchmark, *, english: str) -> list[str]:
    """List the languages, of those polyalign knows, that there are captions in."""
    known = (langs.load(code) for code in langs.names())
    return [lang.code for lang in known if lang.flores and (config.root / _file(lang, english)).is_file()]


def _file(lang: Lang, english: str) -> str:
    return english if lang.code == "en" else f"{lang.flores}.txt"
