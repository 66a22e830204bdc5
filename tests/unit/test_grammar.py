from __future__ import annotations

import numpy as np

from polyalign import lang as langs
from polyalign.starter.grammar import say
from polyalign.starter.world import Scene, Thing

SCENE = Scene("grass", (Thing("house", "red", "small", 2), Thing("tree", "green", "large", 1)), "left", 0)


def test_the_same_state_of_chance_gives_the_same_sentence() -> None:
    lang = langs.load("sw")
    said = [say(SCENE, lang, np.random.default_rng(7)) for _ in range(2)]
    assert said[0] == said[1]
