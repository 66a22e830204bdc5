from __future__ import annotations

import pytest

from polyalign.config import language as languages
from polyalign.data.sources import flickr8k
from polyalign.utils.errors import UserError

EN, DE, QU = (languages.load_language(code) for code in ("en", "de", "qu"))


@pytest.fixture
def root(tmp_path):
    for name in ("captions", "splits", "images"):
        (tmp_path / name).mkdir()
    (tmp_path / "splits" / "train.txt").write_text("b.jpg\na.jpg\n")
    (tmp_path / "splits" / "dev.txt").write_bytes(b"c.jpg\r\nd.jpg")
    (tmp_path / "splits" / "test.txt").write_text("e.jpg\n")
    (tmp_path / "captions" / "en.txt").write_text(
        "".join(f"{n}.jpg#{k}\t{n} {k} .\n" for n in "abcde" for k in range(2))
    )
    (tmp_path / "captions" / "de.txt").write_bytes(
        b"\xef\xbb\xbfa.jpg#0\teins\r\nc.jpg#0\tdrei\r\ne.jpg#0\tf\xc3\xbcnf"
    )
    (tmp_path / "captions" / "qu.txt").write_text("a.jpg#0\thuk\n")
    return tmp_path


def load(root, lang, split, **options):
    return flickr8k.load(flickr8k.Config(root=root, **options), lang, split)


def test_reads_the_captions_of_a_split(root):
    table = load(root, EN, "train")
    assert (table.name, table.lang, table.origin) == ("flickr8k-train", "en", "human")
    assert table.image_ids == ("a.jpg", "b.jpg")
    assert table.captions == ("a 0 .", "a 1 .", "b 0 .", "b 1 .")
    assert table.image_of.tolist() == [0, 0, 1, 1]
    assert [image.path.name for image in table.images] == ["a.jpg", "b.jpg"]


def test_an_image_without_captions_in_the_language_is_not_there(root):
    assert load(root, DE, "dev").image_ids == ("c.jpg",)
    assert load(root, DE, "test").captions == ("fünf",)


def test_common_images_have_captions_in_all_languages(root):
    assert load(root, EN, "train", images="common").image_ids == ("a.jpg",)
    assert load(root, EN, "test", images="common", langs=("en", "de")).image_ids == ("e.jpg",)
    with pytest.raises(UserError, match="no captions in en for any image of the test split"):
        load(root, EN, "test", images="common")


def test_machine_translations_are_called_so_unless_told_otherwise(root):
    assert load(root, QU, "train").origin == "machine"
    assert load(root, QU, "train", origin="human").origin == "human"


def test_captions_of_unknown_authors_are_not_called_human(root, caplog):
    (root / "captions" / "sw.txt").write_text("a.jpg#0\tmoja\n")
    swahili = languages.load_language("sw")
    assert load(root, swahili, "train").origin == "machine"
    assert "sw.txt" in caplog.text
    assert "source.origin" in caplog.text
    caplog.clear()
    assert load(root, swahili, "train", origin="human").origin == "human"
    assert [load(root, lang, "train").origin for lang in (EN, DE, QU)] == ["human", "human", "machine"]
    assert not caplog.text


def test_the_files_as_first_published_are_read_too(tmp_path):
    (tmp_path / "Flickr8k.token.txt").write_text("a.jpg#0\tone\nb.jpg.1#0\tno such image\n")
    (tmp_path / "Flickr_8k.testImages.txt").write_text("a.jpg\n")
    (tmp_path / "Flicker8k_Dataset").mkdir()
    table = load(tmp_path, EN, "test")
    assert table.captions == ("one",)
    assert table.images[0].path == tmp_path / "Flicker8k_Dataset" / "a.jpg"
    with pytest.raises(UserError, match=r'no captions in "de" .*known: en'):
        load(tmp_path, DE, "test")


def test_what_is_not_there_is_named(root):
    with pytest.raises(UserError, match=r'no captions in "sw" \(.*sw\.txt\): .*de, en, qu'):
        load(root, languages.load_language("sw"), "train")
    with pytest.raises(UserError, match=r'no split "tset": did you mean "test"'):
        load(root, EN, "tset")
    with pytest.raises(UserError, match="there is no folder"):
        load(root / "none", EN, "test")
    (root / "splits" / "test.txt").unlink()
    with pytest.raises(
        UserError, match=r"no list of the test images: .*test\.txt \(nor .*Flickr_8k\.testImages\.txt\)"
    ):
        load(root, EN, "test")
    (root / "images").rmdir()
    with pytest.raises(UserError, match="no folder of images: put them into"):
        load(root, EN, "train")


@pytest.mark.parametrize(("line", "message"), [("a.jpg\tone", "line 2"), ("a.jpg#0 one", "line 2"), ("", "line 2")])
def test_a_malformed_line_is_named(root, line, message):
    (root / "captions" / "en.txt").write_text(f"a.jpg#0\tone\n{line}\n")
    with pytest.raises(UserError, match=message):
        load(root, EN, "train")


def test_an_empty_file_is_refused(root):
    (root / "captions" / "en.txt").write_text("")
    with pytest.raises(UserError, match=r"en\.txt is empty"):
        load(root, EN, "train")
