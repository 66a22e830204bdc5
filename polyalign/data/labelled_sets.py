"""The labelled datasets that zero-shot classification is published on, by name: where each is, and what to expect."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class LabelledSet(BaseModel):
    """Facts of a labelled dataset; ``hub`` is its name on the Hugging Face hub, empty where it is not to be had there.

    Folder trees of the same data (a folder a class) are read as well. ``checked`` says where the facts were looked up.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    classes: int
    images: str
    hub: str = ""
    split: str = "test"
    label_column: str = "label"
    place: str = ""
    note: str = ""
    checked: str


KNOWN = {
    "imagenet": LabelledSet(
        title="ImageNet (ILSVRC 2012)",
        classes=1000,
        images="50,000 validation",
        hub="ILSVRC/imagenet-1k",
        split="validation",
        place="val/<wnid>/*.JPEG, one folder a class (n01440764, ...)",
        note="Access has to be asked for at the hub. Names of classes in 93 languages: data/babel_imagenet.json of "
        "https://github.com/gregor-ge/Babel-ImageNet (BabelNet's non-commercial licence), with --names.",
        checked="sizes are ILSVRC's; the hub's page was not at hand; Babel-ImageNet at commit 317c498",
    ),
    "imagenetv2": LabelledSet(
        title="ImageNetV2 (matched frequency)",
        classes=1000,
        images="10,000",
        place="imagenetv2-matched-frequency.tar.gz of https://huggingface.co/datasets/vaishaal/ImageNetV2, unpacked: "
        "folders 0 to 999",
        checked="the address in CLIP_benchmark's imagenetv2.py",
    ),
    "cars": LabelledSet(
        title="Stanford Cars",
        classes=196,
        images="8,041 test",
        hub="tanganke/stanford_cars",
        place="one folder a class",
        checked="sizes in torchvision's documentation; that the hub has it as parquet, in its listing",
    ),
    "caltech101": LabelledSet(
        title="Caltech101",
        classes=102,
        images="about 9,100, of which peers test on different parts",
        hub="flwrlabs/caltech101",
        split="train",
        place="101_ObjectCategories/<class>/*.jpg",
        note="Counted with its class of backgrounds; the hub has no test split, so all images are taken.",
        checked="that the hub has it as parquet, in its listing; its number of classes was not at hand",
    ),
    "food101": LabelledSet(
        title="Food101",
        classes=101,
        images="25,250 test (called validation on the hub)",
        hub="ethz/food101",
        split="validation",
        place="images/<class>/*.jpg of the test list",
        checked="sizes and split in the hub's listing",
    ),
    "cub": LabelledSet(
        title="CUB-200-2011",
        classes=200,
        images="5,794 test",
        hub="bentrevett/caltech-ucsd-birds-200-2011",
        place="images/<001.Black_footed_Albatross>/*.jpg of the test list",
        checked="sizes in a dataset card at the hub; that the hub has it as parquet, in its listing",
    ),
    "aircraft": LabelledSet(
        title="FGVC-Aircraft, variants",
        classes=100,
        images="3,333 test",
        hub="HuggingFaceM4/FGVC-Aircraft",
        label_column="variant",
        place="one folder a variant",
        checked="that the hub has it as parquet with a test split, in its listing; its column was not at hand",
    ),
    "pets": LabelledSet(
        title="Oxford-IIIT Pets",
        classes=37,
        images="3,669 test",
        hub="timm/oxford-iiit-pet",
        place="one folder a breed",
        checked="sizes, splits and columns as quoted at the hub",
    ),
}
