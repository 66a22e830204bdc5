"""Hypothesis strategies that damage bytes, tables and texts, and values that nobody should give."""

from __future__ import annotations

import copy
import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tomli_w
from hypothesis import strategies as st

# Letters of several scripts, and what terminals, paths, rich's markup, CSV, JSON and TOML give a meaning to.
ALPHABET = (
    "abcxyz019 éß语ي🙂\u0301\u200f\u202e\x00\x07\x08\x1b\x7f\x85\x9b\r\n\t\u2028"
    "\ufeff\"'`\\/.,;:=+-_*?#%$&|<>{}[]()~!@^"
)
texts = st.text(ALPHABET, max_size=12) | st.text(max_size=6)
NASTY = (
    "", " ", ".", "..", "../..", "/", "/etc/passwd", "~", "-", "--", "--help", "a/b", "a\\b", "nul", "\x00", "\n", "\r",
    "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\x9b2J", "\u202egnp.exe", "[red]x[/red]", "[/]", "[/b]", "{}",
    "{0}", "{lang}",
    "{x!r}", "%s", "%n", "${HOME}", "$(id)", "`id`", "a" * 300, "é" * 200, "1e999", "nan", "inf", "-1", "0", "1_000",
    "9" * 400, "true", "null", "None", "sw", "en", "lilt", "folder", "starter", "http://127.0.0.1:9/x", "hf:x/y",
    "file:///etc/passwd", "last:1", "last:0", "last:-1", "10k-pairs", "0-pairs", "1e9GiB", "20min", "error: x",
    "error: x\nerror: y",
)  # fmt: skip
strings = st.sampled_from(NASTY) | texts
integers = st.sampled_from((0, 1, 2, -1, 7, 255, 2**31, 2**63 - 1, -(2**63), 2**64, 10**30)) | st.integers(-3, 40)
floats = st.sampled_from((0.0, -0.0, 1e-320, 1e308, -1.0, float("inf"), float("-inf"), float("nan"))) | st.floats()
scalars = strings | integers | floats | st.booleans()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(strings, inner, max_size=3), max_leaves=5
)
json_values = values | st.none()
toml_values = values | st.just(datetime.datetime(2020, 1, 1)) | st.just(datetime.date(1, 1, 1))


def put_in_place(path: Path, how: str, other: Path) -> None:
    """Replace a file by nothing, another file, a folder, an empty file, or a link."""
    path.unlink()
    match how:
        case "other":
            path.write_bytes(other.read_bytes())
        case "folder":
            path.mkdir()
        case "empty":
            path.touch()
        case "broken link":
            path.symlink_to("absent")
        case "loop":
            path.symlink_to(path.name)
        case "link out":
            path.symlink_to(other)


@st.composite
def mutated(draw: st.DrawFn, base: bytes, most: int = 4) -> bytes:
    """Flip, overwrite, insert, delete, repeat or cut bytes."""
    data = bytearray(base)
    for _ in range(draw(st.integers(1, most))):
        size = len(data)
        # Headers are at the start: half of all damage is there.
        start = draw(st.integers(0, min(size, 64)) | st.integers(0, size))
        length = draw(st.integers(1, 16) | st.integers(1, max(1, size)))
        match draw(st.sampled_from(["flip", "set", "insert", "delete", "repeat", "cut", "zero"])):
            case "flip" if start < size:
                data[start] ^= 1 << draw(st.integers(0, 7))
            case "set" if start < size:
                data[start] = draw(st.sampled_from((0, 1, 0x7F, 0x80, 0xFF)) | st.integers(0, 255))
            case "insert":
                data[start:start] = draw(st.binary(min_size=1, max_size=8))
            case "delete":
                del data[start : start + length]
            case "repeat":
                data[start:start] = data[start : start + min(length, 4096)]
            case "cut":
                del data[start:]
            case "zero":
                data[start : start + length] = bytes(len(data[start : start + length]))
    return bytes(data)


def _places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value below the top of nested tables and lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        if not (isinstance(value, list) and len(value) > 20):
            yield from _places(value, (*path, key))


@st.composite
def edited(draw: st.DrawFn, base: Any, new: st.SearchStrategy[Any] = json_values, most: int = 3) -> Any:
    """Replace, delete, rename, add or swap values of nested tables and lists."""
    tree = copy.deepcopy(base)
    for _ in range(draw(st.integers(1, most))):
        places = list(_places(tree))
        if not places:
            return draw(new)
        path = draw(st.sampled_from(places))
        holder = tree
        for key in path[:-1]:
            holder = holder[key]
        last = path[-1]
        match draw(st.sampled_from(["replace", "replace", "delete", "rename", "add", "swap"])):
            case "replace":
                holder[last] = draw(new)
            case "delete":
                del holder[last]
            case "rename" if isinstance(holder, dict):
                holder[draw(strings)] = holder.pop(last)
            case "add" if isinstance(holder, dict):
                holder[draw(strings)] = draw(new)
            case "add":
                holder.append(draw(new))
            case "swap":
                other = draw(st.sampled_from(list(holder) if isinstance(holder, dict) else range(len(holder))))
                holder[last], holder[other] = holder[other], holder[last]
    return tree


# A parser must not fall over numbers of 5,000 digits, or 5,000 brackets.
DEEP = (
    "[" * 5_000,
    "[" * 5_000 + "]" * 5_000,
    '{"a":' * 5_000,
    "9" * 5_000,
    "1e" + "9" * 5_000,
    '"\\ud800"',
    "{" * 200,
)
NASTY_TOML = (
    "", "\x00", "\ufeffa = 1", "a", "a = ", "a = 1\na = 2", "[a]\n[a]", "a = 1e400", "a.b.c = 1\na.b = 2", "=",
    "[[a]]\n[a]",
    *(f"a = {text}" for text in DEEP), ".".join(["a"] * 3_000) + " = 1",
)  # fmt: skip


def toml(base: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """Return a strategy for damaged TOML files: edited, then written; or written, then damaged."""
    good = tomli_w.dumps(base).encode()
    edits = edited(base, toml_values).map(_toml)
    added = st.sampled_from(NASTY_TOML).map(lambda text: good + b"\n" + text.encode())
    return edits | edits | mutated(good) | st.sampled_from(NASTY_TOML).map(str.encode) | added | st.binary(max_size=40)


def _toml(tree: Any) -> bytes:
    try:
        return tomli_w.dumps(tree if isinstance(tree, dict) else {"a": tree}).encode("utf-8", "surrogatepass")
    except (TypeError, ValueError):
        return repr(tree).encode("utf-8", "surrogatepass")


def json_file(base: Any) -> st.SearchStrategy[bytes]:
    """Return a strategy for damaged JSON files."""
    good = json.dumps(base).encode()
    edits = edited(base).map(lambda tree: json.dumps(tree).encode())
    deep = st.sampled_from(DEEP).map(str.encode)
    return edits | edits | mutated(good) | deep | deep.map(lambda text: b'{"x":' + text + b"}") | st.binary(max_size=40)
