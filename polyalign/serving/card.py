"""The model card of a run: what it is, how well it works, under which licence, and how to open it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import timm
from huggingface_hub import EvalResult, ModelCard, ModelCardData, model_info
from huggingface_hub import constants as hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from polyalign.config.language import load_language
from polyalign.config.run_files import check_finished
from polyalign.evaluation.results import Retrieval, Run
from polyalign.evaluation.tables import RECALL_NAMES, duration, gallery_line, markdown, percent, searched, share
from polyalign.serving.places import info_of, is_local, published
from polyalign.training.train import RESULT
from polyalign.utils.errors import UserError, did_you_mean
from polyalign.utils.hub import check_hub
from polyalign.utils.text import clean, for_markdown

LICENCES = (
    *("cc0-1.0", "unlicense", "mit", "bsd-3-clause", "apache-2.0", "cc-by-4.0", "openrail", "cc-by-sa-4.0", "lgpl-3.0"),
    *("gpl-3.0", "agpl-3.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-4.0"),
)
"""Licences by the hub's names; each asks at least as much of the user as those before it."""

MARK = b"\nlibrary_name: polyalign\n"
"""Tells a card from other files."""

Parts = dict[str, tuple[str | None, str | None]]

_NAMES = ("R@1", "R@5", "R@10")


def card(
    run: Path, *, licence: str | None = None, repo: str | None = None, base_models: Sequence[str] = ()
) -> ModelCard:
    """Return the model card of a finished run; ``repo`` is its name on the hub.

    ``base_models`` are the names of the towers on the hub, if the run has them from local folders.

    Raises:
        UserError: the folder has no result, or the licence of the towers or the data is not known and none is given, or
            a given one is less strict than a known one or cannot be compared with it.
    """
    check_finished(run)
    if not (run / RESULT).is_file():
        raise UserError(f"{run} has no {RESULT}: a card needs the results of a trained run")
    record = Run.load_json(run / RESULT)
    name = repo or run.absolute().name
    parts = _parts(record)
    terms = _strictest({part: found for part, (_, found) in parts.items()}, licence)
    record = Run.model_validate(published(record.model_dump(mode="json")))
    data = ModelCardData(
        language=list(record.langs),
        license=terms if terms in LICENCES else "other",
        license_name=None if terms in LICENCES else terms,
        library_name="polyalign",
        pipeline_tag="zero-shot-image-classification",
        tags=["polyalign", "clip", "image-text-retrieval", record.strategy],
        base_model=list(base_models) or [found for found, _ in parts.values() if found] or None,
        model_name=name,
        eval_results=[score for test in record.test for score in _scores(test)],
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_body(record, name, terms, parts)}")


def _parts(record: Run) -> Parts:
    """Return the name on the hub and the licence of the vision tower, the text tower and the data, where known."""
    vision, text = record.recipe["vision"], record.recipe["text"]
    return {
        f"the vision tower {_known_as('vision', vision['model'])}": _vision(vision["model"], vision.get("weights")),
        f"the text tower {_known_as('text', text['model'])}": _text(text["model"]),
        _data(record): (None, "apache-2.0" if record.recipe["source"]["name"] == "starter" else None),
    }


def _data(record: Run) -> str:
    source = record.recipe["source"]["name"]
    info = info_of(source)
    return f"the data ({clean(source, 80)}{f': {info.licence}' if info else ''})"


def _vision(model: str, weights: object) -> tuple[str | None, str | None]:
    if model == "starter":
        return None, "apache-2.0"
    if model.startswith(("hf-hub:", "hf_hub:", "hf:")):
        place = model.partition(":")[2]
        return place, _licence_on_hub(place)
    if weights is not None or "/" in model:
        return None, _licence_in(Path(model))
    config = timm.get_pretrained_cfg(model, allow_unregistered=True)
    if config is None:
        return None, None
    place = (config.hf_hub_id or "").removesuffix("/")
    return (f"timm/{model}" if place == "timm" else place or None), config.license


def _text(model: str) -> tuple[str | None, str | None]:
    if model == "starter":
        return None, "apache-2.0"
    if Path(model).expanduser().is_dir() or model.startswith(("/", "~", ".")):
        return None, _licence_in(Path(model).expanduser())
    return model, _licence_on_hub(model)


def _licence_in(folder: Path) -> str | None:
    """Return what the model card in a local folder states."""
    path = folder / "README.md"
    try:
        found = ModelCard.load(path).data.get("license") if path.is_file() else None
    except (OSError, ValueError):  # a README without the hub's header states no licence
        return None
    return found if isinstance(found, str) else None


def _licence_on_hub(name: str) -> str | None:
    """Return what the model's card on the hub states; None if it states nothing or cannot be reached."""
    check_hub()
    if hub.HF_HUB_OFFLINE:
        return None
    try:
        found = model_info(name).card_data
    except (HfHubHTTPError, HFValidationError, httpx.HTTPError, OSError):  # then the user is asked
        return None
    terms = None if found is None else found.get("license")
    return terms if isinstance(terms, str) else None


def _strictest(known: dict[str, str | None], given: str | None) -> str:
    """Return the given licence, or the strictest of the parts.

    Raises:
        UserError: that of a part is unknown and none is given, or a part's is stricter than the given one or cannot be
            compared with it.
    """
    order = {name: place for place, name in enumerate(LICENCES)}
    if given is not None and given.casefold() in order:
        given = given.casefold()
    unknown = [part for part, terms in known.items() if terms not in order]
    stated = {part: terms for part, terms in known.items() if terms is not None and terms in order}
    if given is None and unknown:
        raise UserError(
            f"the licence of {' and of '.join(unknown)} is not known: read their terms, and state that of the model "
            "with --license, such as cc-by-4.0"
        )
    part, terms = max(stated.items(), key=lambda one: order[one[1]], default=("", LICENCES[0]))
    if given is not None and given not in order and stated and given not in known.values():
        raise UserError(
            f'--license "{clean(given, 100)}" cannot be compared with {terms}, the licence of {part}: '
            f"{did_you_mean(given.casefold(), LICENCES)}"
        )
    if given in order and order[given] < order[terms]:
        raise UserError(f"--license {given} asks less of users than {terms}, the licence of {part}: use {terms}")
    return given or terms


def _scores(test: Retrieval) -> list[EvalResult]:
    """Return the recalls and their mean as entries of the model index, in percent."""
    chance = test.chance()
    places: dict[str, Any] = {
        "task_type": "image-text-retrieval",
        "dataset_type": test.gallery,
        "dataset_name": f"{test.gallery} in {test.lang}",
        "dataset_config": test.lang,
        "dataset_split": "test",
        "dataset_args": {"images": test.images, "captions": test.captions, "caption_origin": test.origin},
    }
    names = [f"{way} {name}" for way in ("text to image", "image to text") for name in _NAMES]
    rows = zip([*names, "mean recall"], test.scores, [*chance.tolist(), float(chance.mean())], strict=True)
    return [
        EvalResult(
            **places,
            metric_type=name.lower().replace(" ", "_").replace("@", "_at_"),
            metric_name=name,
            metric_value=round(100 * score.value, 2),
            metric_args={
                "interval_95": [round(100 * score.low, 2), round(100 * score.high, 2)],
                "chance": round(100 * by_chance, 2),
            },
        )
        for name, score, by_chance in rows
    ]


def _body(record: Run, name: str, terms: str, known: Parts) -> str:
    """Return the text of the card as Markdown."""
    recipe, spoken = record.recipe, ", ".join(_language(code) for code in record.langs)
    about = (
        f"A model that embeds images and sentences in {spoken} as vectors of {recipe['projection']['dim']} numbers, "
        f"close if they belong together. Made by polyalign with the strategy `{record.strategy}`. Its image tower is "
        f"{_known_as('vision', recipe['vision']['model'])}, its text tower "
        f"{_known_as('text', recipe['text']['model'])}."
    )
    parts = [
        f"# {for_markdown(name.rpartition('/')[2])}",
        about,
        "## How well it finds the right photo",
        _results(record),
        "## Other languages",
        _others(record),
        "## How it was trained",
        _training(record),
        "## What is not in it",
        "The photos and captions it was trained on are not part of this model, and neither is the list of their names.",
        "## Licence",
        f"`{terms}`. Its parts: {'; '.join(_stated(known))}.",
        "## How to open it",
        _usage(record, name),
    ]
    return "\n\n".join(parts) + "\n"


def _language(code: str) -> str:
    try:
        return f"{for_markdown(load_language(code).english_name)} ({code})"
    except UserError:  # a file in ./langs that is not here
        return code


def _known_as(side: str, model: str) -> str:
    """Return the name of a tower, that of a local folder without its place on this machine."""
    return "from a local folder" if is_local(f"{side}.model", model) else f"`{clean(model, 200).replace('`', '')}`"


def _stated(parts: Parts) -> list[str]:
    return [f"{for_markdown(part)}: {terms or 'not stated'}" for part, (_, terms) in parts.items()]


def _results(record: Run) -> str:
    rows = []
    for test in record.test:
        own = "" if test.lang in record.langs else " (not trained on)"
        rows.append([f"{_language(test.lang)}{own}", searched(test), *map(percent, test.scores)])
        chance = test.chance()
        rows.append(["chance", "", *map(percent, chance.tolist()), percent(float(chance.mean()))])
    header = ["language", "images", *RECALL_NAMES]
    galleries = "\n".join(f"- {for_markdown(gallery_line(test))}" for test in record.test)
    note = "Percent found among the first 1, 5 and 10, with 95 % intervals over the test images."
    return f"{markdown(header, rows)}\n{note}\n\n{galleries}"


def _others(record: Run) -> str:
    """Say what the towers lost in other languages and tasks, if it was measured."""
    kept = record.retention
    if kept is None:
        return (
            "What the towers lost in other languages by this training was not measured (`polyalign retention` does): "
            "in a language that is not in the table above, try it before you rely on it."
        )
    changes = {**{f"sentences {pair}": one for pair, one in kept.sentences.items()}, **kept.probe}
    rows = [[for_markdown(what), percent(one.before), percent(one.after)] for what, one in changes.items()]
    return "What the towers could do before and after training, in percent:\n\n" + markdown(
        ["what", "before", "after"], rows
    )


def _training(record: Run) -> str:
    lines = [
        f"{record.pairs:,} pairs on {record.images:,} images; captions: {record.caption_origin}",
        f"{share(record.trainable, record.total)} of {record.total:,} parameters trained, {record.steps:,} steps",
        f"{duration(record.seconds)} on {for_markdown(record.device)}, seed {record.seed}",
    ]
    if record.parallel_rows:
        lines.append(f"{record.parallel_rows:,} parallel sentences in {', '.join(record.parallel_langs)}")
    return "\n".join(f"- {line}" for line in lines)


def _usage(record: Run, name: str) -> str:
    place = name if "/" in name else f"USER/{name}"
    return f"""With polyalign:

```python
from huggingface_hub import snapshot_download
import polyalign

model = polyalign.load(snapshot_download("{place}"))
model.similarity(["photo.jpg"], ["..."])
```

`difference/` has only what training changed, for those who have the towers. Other formats are written by

```sh
polyalign export FOLDER --to onnx --out model-onnx    # ONNX Runtime, and transformers.js in a browser
polyalign export FOLDER --to transformers --out model-hf
polyalign export FOLDER --to sentence-transformers --out model-st
polyalign export FOLDER --to open-clip --out model-oc
```

which refuse what a format cannot hold, and are opened by

```python
onnxruntime.InferenceSession("model-onnx/onnx/text_model.onnx")
transformers.AutoModel.from_pretrained("model-hf", trust_remote_code=True)
sentence_transformers.SentenceTransformer("model-st")
open_clip.create_model_and_transforms("local-dir:model-oc")[0].eval()
```"""
