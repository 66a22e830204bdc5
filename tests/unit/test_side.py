from __future__ import annotations

import torch

from polyalign.config.schema import Cache
from polyalign.models.embed import prepare
from tests import tiny


def test_each_tower_gives_the_mean_of_every_layer_and_its_features_last():
    aligner, plain = tiny.aligner("side"), tiny.aligner()
    with torch.no_grad():
        for tower, other in ((aligner.vision, plain.vision), (aligner.text, plain.text)):
            x = tower.probe()
            *hidden, features = other.layers(x)
            mask = x.mask if tower.kind == "text" else torch.ones(hidden[0].shape[:2], dtype=torch.bool)
            means = [
                torch.stack([one[real].mean(0) for one, real in zip(state, mask, strict=True)]) for state in hidden
            ]
            assert len(means) == 4  # the input of three blocks, and their outputs
            torch.testing.assert_close(tower(x), torch.cat([*means, features], -1))
            assert [state.shape for state in tower.layers(x)] == [state.shape for state in other.layers(x)]


def test_the_states_of_all_layers_are_cached_once_and_not_as_the_features_of_other_strategies():
    for name in ("projection", "side", "projection"):
        features = prepare(tiny.aligner(name), tiny.table(), Cache())
        width = 32 * (5 if name == "side" else 1)
        assert features.images.values.shape == (len(tiny.table().images), width)
        assert features.captions.values.shape == (len(tiny.table().captions), width)


def test_the_last_layers_alone_are_read():
    aligner = tiny.aligner("side", strategy={"layers": "last:1"})
    assert aligner.vision_projection.correction.widths == [32, 32]
    x = aligner.vision(aligner.vision.probe())
    changed = x.clone()
    changed[:, : 3 * 32] = 0
    torch.nn.init.normal_(aligner.vision_projection.correction.up.weight)
    with torch.no_grad():
        assert torch.equal(aligner.vision_projection(x), aligner.vision_projection(changed))
        changed[:, 3 * 32 : 4 * 32] = 0
        assert not torch.equal(aligner.vision_projection(x), aligner.vision_projection(changed))
