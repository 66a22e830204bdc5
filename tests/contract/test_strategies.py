"""Test every strategy in the folder: trainable parameters change in training, and no others."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from polyalign.config import plugins
from polyalign.config.schema import Optim, Recipe
from polyalign.models import checkpoint
from polyalign.models.aligner import Aligner
from polyalign.models.strategies.lilt import Adapter
from polyalign.training.loss import info_nce
from polyalign.training.optim import adamw
from polyalign.utils.errors import UserError
from tests import tiny

STRATEGIES = plugins.plugin_names("strategies")
FAMILIES = ("bert", "xlmr")
CASES = [
    (name, towers, family)
    for name in STRATEGIES
    for towers, families in (("both", FAMILIES), ("text", ("xlmr",)), ("vision", ("bert",)))
    for family in families
    if (name, towers) != ("lit", "both")
]
HEADS = ("projection", "mlp", "side")  # these leave the networks as they are
INSERTING = ("lilt", "lilt-deep", "lora")
# Parameters before a map that starts at zero have no gradient until the map has changed.
STILL_AT_FIRST = {
    "lilt": r"\.down\.",
    "lora": r"\.lora_A\.",
    "lilt-deep": r"(blocks|layer)\.3\.",
    "mlp": r"\.correction\.[01]\.",
    "side": r"\.correction\.(?!up\.)",
}

every_case = pytest.mark.parametrize(("name", "towers", "family"), CASES, ids=map("-".join, CASES))
every_strategy = pytest.mark.parametrize("name", STRATEGIES)


def recipe(name: str, towers: str, family: str = "bert", vision: Any = None, layers: str = "all") -> Recipe:
    sections = {"vision": {"model": str(vision or tiny.vision())}, "text": {"model": str(tiny.text(family))}}
    return tiny.resolved(name, strategy={"towers": towers, "layers": layers}, **sections)


def build(*args: Any, **options: Any) -> Aligner:
    return tiny.build_aligner(recipe(*args, **options))


PAIRS = 8


@cache
def images() -> list[Image.Image]:
    return [image.open() for image in tiny.table().images[:PAIRS]]


def encode(aligner: Aligner) -> tuple[torch.Tensor, torch.Tensor]:
    """Embed images and captions with the whole towers, frozen parts included."""
    pixels = torch.stack([aligner.vision.transform(image) for image in images()])
    tokens = aligner.text.collate(aligner.text.tokenize(list(tiny.table().captions[:PAIRS])))
    return aligner.encode_image(pixels), aligner.encode_text(tokens)


def snapshot(aligner: Aligner) -> dict[str, torch.Tensor]:
    tensors = {**dict(aligner.named_parameters()), **dict(aligner.named_buffers())}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@dataclass(frozen=True)
class Trained:
    """An aligner before and after three steps, what it embedded before, and the gradients of each step."""

    aligner: Aligner
    start: tuple[torch.Tensor, torch.Tensor]
    before: dict[str, torch.Tensor]
    after: dict[str, torch.Tensor]
    gradients: list[dict[str, torch.Tensor | None]]

    @property
    def names(self) -> set[str]:
        """The trainable parameters."""
        return set(self.aligner.trainable())


def train(aligner: Aligner) -> Trained:
    start, before, gradients = encode(aligner), snapshot(aligner), []
    # Without weight decay, so that only gradients change parameters.
    optimiser = adamw(aligner, Optim(lr=1e-2, weight_decay=0))
    for step in range(3):
        torch.manual_seed(step)
        aligner.train()
        image, text = encode(aligner)
        optimiser.zero_grad()
        info_nce(image, text, aligner.scale, torch.eye(PAIRS, dtype=torch.bool)).backward()
        gradients.append({name: None if p.grad is None else p.grad.clone() for name, p in aligner.trainable().items()})
        optimiser.step()
    return Trained(aligner.eval(), start, before, snapshot(aligner), gradients)


@cache
def trained(*case: str) -> Trained:
    return train(build(*case))


def test_the_published_strategies_are_found_and_every_strategy_has_its_cases():
    assert {"projection", "layernorm", "bitfit", "lilt", "lilt-deep", "lit", "full", "scratch"} <= set(STRATEGIES)
    assert {name for name, _, _ in CASES} == set(STRATEGIES)


@every_case
def test_what_is_frozen_stays_the_same_to_the_bit(name, towers, family):
    run = trained(name, towers, family)
    frozen = set(run.before) - run.names
    assert frozen
    assert not [key for key in frozen if not torch.equal(run.before[key], run.after[key])]


@every_case
def test_everything_that_trains_moves_by_a_finite_gradient(name, towers, family):
    run = trained(name, towers, family)
    assert {"vision_projection.weight", "text_projection.bias", "logit_scale"} <= run.names
    assert not [key for key in run.names if torch.equal(run.before[key], run.after[key])]
    for step, gradients in enumerate(run.gradients):
        assert not [key for key, gradient in gradients.items() if gradient is None]
        assert not [key for key, gradient in gradients.items() if not gradient.isfinite().all()]
        still = [key for key, gradient in gradients.items() if not gradient.any()]
        may_be_still = STILL_AT_FIRST.get(name) if step == 0 else None
        assert not [key for key in still if not (may_be_still and re.search(may_be_still, key))]
    if name in STILL_AT_FIRST and name != "lilt-deep":
        first = {key for key, gradient in run.gradients[0].items() if not gradient.any()}
        assert first == {key for key in run.names if re.search(STILL_AT_FIRST[name], key)} != set()


@every_case
def test_only_the_towers_asked_for_are_touched(name, towers, family):
    run = trained(name, towers, family)
    inside = {re.split(r"[._]", key)[0] for key in run.names if ".model." in key or key in run.aligner.inserted}
    wanted = {"both": {"vision", "text"}}.get(towers, {towers})
    assert inside == (set() if name == "projection" else wanted)


@every_case
def test_an_aligner_starts_as_the_frozen_towers_with_the_same_projections(name, towers, family):
    image, text = trained(name, towers, family).start
    plain_image, plain_text = trained("projection", "both", family).start
    fresh = name == "scratch"
    assert torch.equal(image, plain_image) != (fresh and towers != "text")
    # BERT normalises after the residual connection, so a new block with zero branches still normalises twice.
    assert torch.equal(text, plain_text) != ((fresh or name == "lilt-deep") and towers != "vision")


@every_case
def test_a_checkpoint_gives_the_same_embeddings_to_the_bit(name, towers, family, tmp_path):
    run = trained(name, towers, family)
    size = checkpoint.save(tmp_path, run.aligner, recipe(name, towers, family))
    loaded, again = checkpoint.load(tmp_path)
    assert again == recipe(name, towers, family)
    assert set(loaded.trainable()) == run.names
    for one, other in zip(encode(run.aligner), encode(loaded), strict=True):
        assert torch.equal(one, other)
    trainable, total = run.aligner.count()
    assert size < 4 * trainable + 200 * (len(run.names) + 1)
    if name in ("projection", "layernorm", "bitfit"):
        assert size < 4 * total / 10


@every_strategy
@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layer_alone_is_all_that_is_touched(name, family):
    if name == "scratch":
        with pytest.raises(UserError, match="scratch trains whole towers"):
            build(name, "both", family, layers="last:1")
        return
    towers = "text" if name == "lit" else "both"
    run = train(build(name, towers, family, layers="last:1"))
    last = 3 if name == "lilt-deep" else 2
    above = rf"^(vision\.model\.(blocks\.{last}|norm)|text\.model\.encoder\.layer\.{last})\."
    touched = {key for key in run.names if ".model." in key}
    assert not [key for key in touched if not re.search(above, key)]
    assert bool(touched) == (name not in HEADS)
    assert not [key for key in run.names if torch.equal(run.before[key], run.after[key])]
    assert not [key for key in set(run.before) - run.names if not torch.equal(run.before[key], run.after[key])]
    stages = len(run.aligner.vision.stages()), len(run.aligner.text.stages())
    cuts = {"projection": stages, "mlp": stages, "side": stages, "lit": (stages[0], 3)}
    assert run.aligner.cuts() == cuts.get(name, (last + 1, last + 1))


@every_strategy
def test_more_layers_than_there_are_is_an_error(name):
    if name in ("projection", "mlp", "scratch"):
        return
    with pytest.raises(UserError, match=r"layers = last:9, but the .* tower \(.*\) has 3 blocks"):
        build(name, "text", layers="last:9")


def test_lit_on_both_towers_is_an_error():
    with pytest.raises(UserError, match=r"lit locks one tower: use --towers text .* or the strategy full"):
        build("lit", "both")


@every_strategy
@pytest.mark.parametrize("towers", ["both", "vision"])
def test_a_convolutional_tower_carries_a_strategy_or_says_why_not(name, towers):
    if (name, towers) == ("lit", "both"):
        return
    try:
        aligner = build(name, towers, vision=tiny.conv())
    except UserError as error:
        assert re.search(rf"^{name} .* the vision tower \(.*\)", str(error))  # noqa: PT017
        return
    whole = len(aligner.vision.stages())
    assert aligner.cuts()[0] == (whole if name in HEADS else 0)


@pytest.mark.parametrize("name", [*INSERTING, "side"])
def test_what_is_inserted_into_blocks_is_not_for_a_convolutional_tower(name):
    match = (
        rf"{name} needs transformer blocks in a list, and the vision tower \(.*\) has no such list: use --towers text"
    )
    with pytest.raises(UserError, match=match):
        build(name, "both", vision=tiny.conv())


@pytest.mark.parametrize("name", ["layernorm", "bitfit", "full", "lit", "side", *INSERTING])
def test_a_convolutional_tower_has_no_last_layer(name):
    with pytest.raises(UserError, match="needs transformer blocks"):
        build(name, "vision", vision=tiny.conv(), layers="last:1")


@every_strategy
def test_an_encoder_of_another_make_carries_a_strategy_or_says_why_not(name):
    try:
        aligner = build(name, "text", "distilbert")
    except UserError as error:
        assert re.search(rf"^{name} .* the text tower \(DistilBertModel\)", str(error))  # noqa: PT017
        return
    run = train(aligner)
    assert not [key for key in run.names if torch.equal(run.before[key], run.after[key])]
    assert not [key for key in set(run.before) - run.names if not torch.equal(run.before[key], run.after[key])]
    assert run.aligner.cuts()[1] == build(name, "text", "bert").cuts()[1]


@pytest.mark.parametrize("name", ["lilt", "lilt-deep", "lora"])
def test_a_text_tower_beside_a_convolutional_one_carries_adapters(name):
    run = train(build(name, "text", vision=tiny.conv()))
    assert {key.split(".")[0] for key in run.names if ".model." in key} == {"text"}


@pytest.mark.parametrize(
    ("name", "towers"),
    [("projection", "both"), ("layernorm", "both"), ("bitfit", "both"), ("full", "both"), ("lit", "vision")],
)
def test_batch_statistics_learned_in_pretraining_stay_whatever_trains(name, towers):
    run = train(build(name, towers, vision=tiny.conv()))
    statistics = [key for key in run.before if "running_" in key]
    assert statistics
    assert not [key for key in statistics if not torch.equal(run.before[key], run.after[key])]


@pytest.mark.parametrize(("name", "towers"), [("full", "both"), ("scratch", "vision"), ("layernorm", "vision")])
def test_batch_statistics_are_as_they_were_after_a_checkpoint(name, towers, tmp_path):
    run = train(build(name, towers, vision=tiny.conv()))
    moved = [key for key in run.before if "running_" in key and not torch.equal(run.before[key], run.after[key])]
    assert bool(moved) == (name == "scratch")
    checkpoint.save(tmp_path, run.aligner, recipe(name, towers, vision=tiny.conv()))
    loaded, _ = checkpoint.load(tmp_path)
    assert tiny.same(snapshot(loaded), run.after)


# The dropouts of the text tower that are active in training.
DROPS_OUT = {
    **dict.fromkeys(("projection", "layernorm", "bitfit", "lilt", "lora"), r"$^"),
    **dict.fromkeys(("full", "scratch", "lit"), r"."),
    "lilt-deep": r"\.layer\.3\.",
}


def trains_whole(aligner: Aligner, path: str) -> bool:
    """Return whether the module is part of one whose parameters are all trainable."""
    parts = path.split(".")
    around = [".".join(parts[:depth]) + "." for depth in range(1, len(parts) + 1)]
    everything, trainable = dict(aligner.named_parameters()), aligner.trainable()
    inside = [{name for name in everything if name.startswith(prefix)} for prefix in around]
    return any(names and names <= trainable.keys() for names in inside)


@every_case
def test_in_training_mode_only_what_trains_is_in_it(name, towers, family):
    aligner = trained(name, towers, family).aligner.train()
    for path, module in aligner.named_modules():
        frozen = [key for key, parameter in module.named_parameters() if not parameter.requires_grad]
        assert not (module.training and frozen), path
    dropouts = {path: module for path, module in aligner.text.named_modules() if isinstance(module, nn.Dropout)}
    active = {path for path, module in dropouts.items() if module.training}
    assert dropouts
    assert active == {path for path in dropouts if trains_whole(aligner, f"text.{path}")}
    if name in DROPS_OUT:
        assert active == {path for path in dropouts if towers != "vision" and re.search(DROPS_OUT[name], path)}
    aligner.eval()
    assert not any(module.training for module in aligner.modules())


@every_strategy
def test_frozen_layers_drop_nothing_out(name):
    aligner = build(name, "text").train()
    (_, first), (_, second) = encode(aligner), encode(aligner)
    # The new block of lilt-deep has dropout, but its branches output zero at the start.
    active = any(isinstance(module, nn.Dropout) and module.training for module in aligner.text.modules())
    assert active or torch.equal(first, second)
    if name in DROPS_OUT:
        assert torch.equal(first, second) == (DROPS_OUT[name] != r".")


@pytest.mark.parametrize("identity", [False, True])
def test_adapters_start_as_the_published_ones_or_as_the_identity(identity):
    aligner = tiny.aligner("lilt", strategy={"identity": identity, "reduction": 1})
    adapters = [module for module in aligner.modules() if isinstance(module, Adapter)]
    assert len(adapters) == 12  # two in each of three layers of two towers
    down, up = (torch.cat([getattr(one, part).weight.flatten() for one in adapters]) for part in ("down", "up"))
    biases = torch.cat([torch.cat([one.down.bias, one.up.bias]) for one in adapters])
    if identity:
        assert down.any()
        assert not up.any()
        return
    for weights in (down, up):
        assert weights.std().item() == pytest.approx(0.02, rel=0.05)
        assert weights.mean().item() == pytest.approx(0, abs=0.001)
        assert weights.abs().max() > 0.05  # normal, not uniform: a uniform distribution of this std ends at 0.035
    assert not biases.any()


@every_strategy
def test_a_strategy_says_what_it_is_in_its_first_line(name):
    about = plugins.load_plugin("strategies", name).__doc__
    assert about
    assert about.splitlines()[0].endswith(".")
