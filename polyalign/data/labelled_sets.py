"""Common labelled datasets for zero-shot classification, by name; the facts are in the TOML file next to this one."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from polyalign.config.shipped import read_toml


class LabelledSet(BaseModel):
    """Facts about a labelled dataset; ``hub`` is its name on the Hugging Face hub, or empty.

    Folder trees of the same data (one folder per class) are also supported. ``checked`` is the source of the facts.
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
    name: LabelledSet.model_validate(facts) for name, facts in read_toml(Path(__file__).with_suffix(".toml")).items()
}
