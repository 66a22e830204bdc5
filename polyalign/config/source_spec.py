"""A source and its options outside of a recipe: what it needs and what it has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from polyalign.config.language import describe_error, language_codes, unknown_key_hint
from polyalign.config.plugins import load_plugin, plugin_names
from polyalign.utils.errors import UserError, did_you_mean


class SourceSpec(BaseModel):
    """A source's ``name`` and its ``options``, checked by ``configure``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    options: dict[str, Any] = {}

    @classmethod
    def flat(cls, raw: Mapping[str, Any]) -> SourceSpec:
        """Take the form of a recipe, where the options stand beside the name."""
        return cls(name=str(raw["name"]), options={key: value for key, value in raw.items() if key != "name"})

    def configure(self) -> tuple[Any, Any]:
        """Return the source's module and its ``Config``.

        Raises:
            UserError: the source is unknown, or an option is unknown, missing or out of its range.
        """
        module = load_plugin("sources", self.name)
        try:
            return module, module.Config(**self.options)
        except ValidationError as error:
            first = error.errors()[0]
            no_root = first["type"] == "missing" and first["loc"] == ("root",)
            hint = place(self.name) if no_root else unknown_key_hint(error, module.Config)
            raise UserError(f"{self.name}: {describe_error(error)}{hint}") from error

    def languages(self) -> list[str] | None:
        """List the known languages that the source has captions in, or None if it cannot list them.

        Raises:
            UserError: see ``configure``.
        """
        module, config = self.configure()
        if not hasattr(module, "languages"):
            return None
        known = set(language_codes())
        return [code for code in module.languages(config) if code in known]


def parse(text: str, options: Mapping[str, Any]) -> tuple[SourceSpec, str | None]:
    """Read ``NAME`` or ``NAME:SPLIT``, where the name is a source's or a folder for the source ``folder``.

    Raises:
        UserError: it names neither.
    """
    name, colon, split = text.rpartition(":")
    if not colon or Path(text).is_dir():
        name, split = text, ""
    known = plugin_names("sources")
    if name in known:
        return SourceSpec(name=name, options=dict(options)), split or None
    if Path(name).is_dir():
        return SourceSpec(name="folder", options={"root": name, **options}), split or None
    raise UserError(f'"{name}" is no folder and no source: {did_you_mean(name, known)}')


def place(source: str, option: str = "") -> str:
    """Describe the files that a source needs, for the end of a message; ``option`` is a prefix of option names."""
    module = load_plugin("sources", source)
    images = f" {option}images=FOLDER" if takes_images(source) else ""
    say = f"; tell where it is with {option}root=FOLDER{images}"
    if not hasattr(module, "INFO"):
        return say
    get = f"polyalign data get {source} downloads it, " if module.INFO.downloads else ""
    return f"{say} ({module.INFO.place}; {get}polyalign datasets {source} says more)"


def takes_images(source: str) -> bool:
    """Return whether the photos of a source are in a folder that the user names (``images``)."""
    return "allow_missing" in load_plugin("sources", source).Config.model_fields


def photos(source: str | None, images: Path | None, *, allow_missing: bool) -> dict[str, Any]:
    """Return the options of a benchmark for a folder of photos; empty if no folder is given.

    Raises:
        UserError: the source is known and has its photos elsewhere.
    """
    given: dict[str, Any] = {} if images is None else {"images": str(images)}
    if allow_missing:
        given["allow_missing"] = True
    if given and source is not None and not takes_images(source):
        takers = ", ".join(filter(takes_images, plugin_names("sources")))
        raise UserError(f'the source "{source}" has its images in its root: --images is for {takers}')
    return given
