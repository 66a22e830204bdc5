from __future__ import annotations

import pytest

from polyalign.config import shipped
from polyalign.utils.errors import UserError


@pytest.fixture
def own(tmp_path, monkeypatch):
    """An empty folder of the user's, made the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", ["recipes", "langs"])
def test_shipped_files_are_found_from_any_folder(kind, own):
    found = shipped.shipped_names(kind)
    assert found
    for name in found:
        path = shipped.find_shipped(kind, name)
        assert path.is_file()
        assert path.is_absolute()
        shipped.read_toml(path)


def test_a_users_own_file_wins_over_the_shipped_one_of_the_same_name(own):
    (own / "langs").mkdir()
    (own / "langs" / "sw.toml").touch()
    (own / "langs" / "xx.toml").touch()
    assert shipped.find_shipped("langs", "sw") == own / "langs" / "sw.toml"
    assert {"sw", "xx", "en"} <= set(shipped.shipped_names("langs"))


def test_a_name_is_listed_once_though_found_twice(own):
    (own / "recipes").mkdir()
    (own / "recipes" / "starter.toml").touch()
    assert shipped.shipped_names("recipes").count("starter") == 1


def test_a_package_folder_wins_over_the_checkouts(own, tmp_path, monkeypatch):
    package = tmp_path / "site" / "polyalign"
    for folder in (package / "langs", tmp_path / "site" / "langs"):
        folder.mkdir(parents=True)
        (folder / "sw.toml").touch()
    monkeypatch.setattr(shipped, "_PACKAGE", package)
    assert shipped.find_shipped("langs", "sw") == package / "langs" / "sw.toml"


@pytest.mark.parametrize(("kind", "name", "said"), [("recipes", "startr", "recipe"), ("langs", "swa", "language")])
def test_an_unknown_name_is_a_user_error_with_advice(kind, name, said, own):
    with pytest.raises(UserError, match=f'unknown {said} "{name}": did you mean'):
        shipped.find_shipped(kind, name)


def test_a_folder_named_like_a_file_is_not_taken_for_one(own):
    (own / "langs" / "qq.toml").mkdir(parents=True)
    with pytest.raises(UserError, match="unknown language"):
        shipped.find_shipped("langs", "qq")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(b"lr = \nseed = 1\n", "line 1"), (b"a = 1\na = 2\n", "line 2"), ("name = 'Türkçe'".encode("latin-1"), "utf-8")],
)
def test_a_file_that_is_not_toml_is_a_user_error_that_says_where(content, complaint, own):
    path = own / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"cannot read .*bad\.toml: .*{complaint}"):
        shipped.read_toml(path)


def test_a_missing_file_is_a_user_error(own):
    with pytest.raises(UserError, match=r"cannot read .*gone\.toml"):
        shipped.read_toml(own / "gone.toml")


def test_norwegian_stays_norwegian(own):
    path = own / "no.toml"
    path.write_text('code = "no"\n', encoding="utf-8")
    assert shipped.read_toml(path) == {"code": "no"}
