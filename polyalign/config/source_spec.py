"""A source of pairs with its options, also outside of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from polyalign.config.language import describe_error, language_codes, unknown_key_hint
from polyalign.config.plugins import load_plugin, plugin_names, shipped_plugins
from polyalign.utils.errors import UserError, did_you_mean


class SourceSpec(BaseModel):
    """The name of a source and its options, which ``configure`` checks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    options: dict[str, Any] = {}

    @classmethod
    def flat(cls, raw: Mapping[str, Any]) -> SourceSpec:
        """Read the form of a recipe, where the name and the options are in one table."""
        return cls(name=str(raw["name"]), options={key: value for key, value in raw.items() if key != "name"})

    def configure(self) -> tuple[Any, Any]:
        """Return the module of the source and its ``Config``.

        Raises:
            UserError: the source is unknown, or an option is unknown, missing or out of range.
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
        """List the known languages in which the source has captions; None if it cannot list them.

        Raises:
            UserError: see ``configure``.
        """
        module, config = self.configure()
        if not hasattr(module, "languages"):
            return None
        known = set(language_codes())
        return [code for code in module.languages(config) if code in known]


def parse(text: str, options: Mapping[str, Any]) -> tuple[SourceSpec, str | None]:
    """Read ``NAME`` or ``NAME:SPLIT``, where NAME is a source or a folder, which the source ``folder`` reads.

    Raises:
        UserError: NAME is neither.
    """
    name, colon, split = text.rpartition(":")
    if not colon or Path(text).is_dir():
        name, split = text, ""
    known = plugin_names("sources")
    if name in known:
        return SourceSpec(name=name, options=dict(options)), split or None
    if Path(name).is_dir():
        return SourceSpec(name="folder", options={"root": name, **options}), split or None
    raise UserError(f'"{name}" is neither a folder nor a source: {did_you_mean(name, known)}')


def place(source: str, option: str = "") -> str:
    """Return the end of a message that says which files a source needs; ``option`` is a prefix of option names."""
    module = load_plugin("sources", source)
    images = f" {option}images=FOLDER" if takes_images(source) else ""
    needed = f"; give its place with {option}root=FOLDER{images}"
    if not hasattr(module, "INFO"):
        return needed
    get = f"polyalign data get {source} downloads it, " if module.INFO.downloads else ""
    return f"{needed} ({module.INFO.place}; {get}polyalign datasets {source} has the details)"


def takes_images(source: str) -> bool:
    """Return whether the user gives the photos of a source as a folder of their own (``images``)."""
    return "allow_missing" in load_plugin("sources", source).Config.model_fields


def photos(source: str | None, images: Path | None, *, allow_missing: bool) -> dict[str, Any]:
    """Return the options of a source for ``--images`` and ``--allow-missing``.

    Raises:
        UserError: an option is given, but the photos of the source are in its root.
    """
    given: dict[str, Any] = {} if images is None else {"images": str(images)}
    if allow_missing:
        given["allow_missing"] = True
    if given and source is not None and not takes_images(source):
        takers = ", ".join(filter(takes_images, shipped_plugins("sources")))
        raise UserError(f'the source "{source}" has its images in its root: --images is for {takers}')
    return given
