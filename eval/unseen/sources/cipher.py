"""The starter world's Swahili with each letter replaced by another: a language that no tower has seen.

Vowels stand for vowels and consonants for consonants, so that words stay pronounceable. Run as a program in the folder
above, this file writes ``corpus.txt``: 25,000 captions of scenes of another world, 1.8 MB.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from polyalign.config.language import Lang, load_language
from polyalign.data.pairs import PairTable
from polyalign.data.sources import starter
from polyalign.data.sources.starter import Config

_CIPHER = str.maketrans("aeioubcdfghjklmnpqrstvwxyz", "oiuaegkzmrvtnhpwlfyjdbqcsx")


def load(config: Config, lang: Lang, split: str) -> PairTable:
    """Load a split of the starter world with captions in the cipher."""
    table = starter.load(config, lang, split)
    captions = tuple(caption.lower().translate(_CIPHER) for caption in table.captions)
    return dataclasses.replace(table, name=f"cipher-{split}", captions=captions)


if __name__ == "__main__":
    other = Config(seed=1, train_images=25_000)
    captions = load(other, load_language("sw"), "train").captions
    Path("corpus.txt").write_text("\n".join(captions) + "\n", encoding="utf-8")
