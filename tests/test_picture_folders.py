"""Which files of a folder are used: odd names, links, captions and their conventions; what is left out is said by
name."""
from __future__ import annotations

import os
import re
import shutil
import sys

import pytest

from personalize.nodes.picture_names import SUFFIXES
from personalize.nodes.text.nodes_prompts import _text_files
from personalize.nodes.training.captions import LARGEST_FILE, captions_for
from personalize.nodes.training.fingerprint import fingerprint as digest
from personalize.nodes.training.picture_files import folder_contents, folder_fingerprint, picture_folder
from support import picture_zoo as zoo
from support.paths import PACK
from support.pictures import picture_paths, sources_from_files

NAME = "<my-dog>"
PNG = zoo.saved(zoo.RGB, "PNG")
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux allows such names")
ODD_NAMES = ["-dash.png", " before.png", "a .png", "a:b.png", "back\\slash.png", "\\\\host\\share.png", "C:.png",
             "quote'\".png",
             "two\nlines.png", "return\r.png", "tab\t.png", "#?&%20.png", "$(touch x).png", "*.png", "[output].png",
             "CON.png",
             "nul.png", "..png", "犬 🐕.png", "é.png", "\u200b.png", "line sep.png", "a" * 250 + ".png",
             "9" * 200 + ".png", "²3.png"]


def names(folder: str = "dogs", chosen: str = "") -> list[str]:
    return [path.name for path in picture_paths(folder, chosen)]


# ---------------------------------------------------------------------- names
@ON_LINUX
def test_odd_names_are_read_in_a_folder_and_when_chosen(folder):
    plain = [name for name in ODD_NAMES if not name.startswith(".")]
    for name in ODD_NAMES:
        (folder / name).write_bytes(PNG)
    sources = sources_from_files("dogs", "", 1000)
    assert set(names()) == set(plain) and len(sources) == len(plain)
    assert all(source.load().pixels.shape == (3, zoo.HEIGHT, zoo.WIDTH) for source in sources)
    assert not any(re.search(r"[\r\n\t]", source.name) for source in sources)
    for name in plain:
        assert names(chosen=name.replace("\n", "\\n").replace("\r", "\\r")) == [name]


@ON_LINUX
def test_a_folders_name_does_not_break_the_sentence(folder):
    (folder / "two\nlines" / "in\nside").mkdir(parents=True)
    for inside in ((), ("in\nside",)):
        for name in inside:
            (folder / "two\nlines" / name / "a.png").write_bytes(PNG)
        with pytest.raises(ValueError, match="dogs/two�lines") as error:
            names("dogs/two\nlines")
        assert str(error.value).isprintable() and ("in�side" in str(error.value)) == bool(inside)


@ON_LINUX
def test_a_name_that_is_no_text_can_be_shown_and_keyed(folder):
    with open(os.fsencode(folder) + b"/caf\xe9.png", "wb") as file:
        file.write(PNG)
    [source] = sources_from_files("dogs", "", 1000)
    assert source.name == "caf�.png" and source.load().pixels.shape == (3, zoo.HEIGHT, zoo.WIDTH)
    assert digest(source.name) and folder_fingerprint("dogs", "").encode("utf-8", "surrogateescape")
    assert names(chosen="caf\udce9.png") == ["caf\udce9.png"]


@pytest.mark.parametrize("name", ["\0", "a\0b.png", "\ud800.png", "x" * 5000, "a/" * 3000 + "b.png"],
                         ids=["null", "null inside", "half a letter", "long", "deep"])
def test_impossible_names_are_one_sentence(folder, name):
    for ask in (lambda: picture_paths(name, ""), lambda: picture_paths("dogs", name)):
        with pytest.raises(ValueError, match="is not in|no name that a file can have"):
            ask()


@ON_LINUX
def test_a_folder_with_spaces_at_its_ends(base):
    for name in (" dogs", "dogs "):
        (base / "input" / name).mkdir()
        (base / "input" / name / "a.png").write_bytes(PNG)
        try:
            assert picture_folder(name).name == name and names(name) == ["a.png"]
        finally:
            shutil.rmtree(base / "input" / name)


def test_every_suffix_and_its_capitals(folder):
    files = [f"a{suffix}" for suffix in SUFFIXES] + [f"b{suffix.upper()}" for suffix in SUFFIXES]
    for name in files:
        (folder / name).write_bytes(PNG)
    assert sorted(names()) == sorted(files)


def test_the_page_takes_the_same_files():
    """Node uploads by the list in js/subject/server.js; another list would refuse there what works here, or the
    reverse."""
    script = (PACK / "js/subject/server.js").read_text(encoding="utf-8")
    pictures, captions = (re.compile(re.search(rf"const {name} = /(.*)/i;", script)[1], re.IGNORECASE)
                          for name in ("PICTURES", "CAPTIONS"))
    assert all(pictures.search(f"a.b{suffix}") for suffix in SUFFIXES)
    assert all(captions.search(name) for name in ("a.txt", "a.caption", "a.TXT"))
    assert not any(pictures.search(name) for name in ("a.txt", "png", "a.png.zip", "a.mp4", "a.safetensors"))


# ---------------------------------------------------------------------- what is left out
def test_what_is_left_out_is_named_with_its_reason(folder):
    for name in ("1.png", ".hidden.png", "clip.mp4", "drawing.svg", "no suffix", "Thumbs.db", ".DS_Store"):
        (folder / name).write_bytes(PNG)
    for name in ("1.txt", "1.caption", "2.txt"):
        (folder / name).write_text("{}")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / "itself.png").symlink_to(folder / "itself.png")
    (folder / "deeper.png").mkdir()
    contents = folder_contents("dogs")
    assert [path.name for path in contents.pictures] == ["1.png"]
    assert contents.left_out == {
        ".hidden.png": "hidden, as its name begins with a dot", "clip.mp4": "no picture", "drawing.svg": "no picture",
        "no suffix": "no picture", "gone.png": "no file, or a link to one that is gone",
        "itself.png": "no file, or a link to one that is gone", "1.caption": "a second caption",
        "2.txt": "a caption without a picture"}
    sentence = contents.left_out_sentence()
    assert sentence.startswith("Not used from the folder: .hidden.png (hidden, as") and sentence.endswith(
        " and 3 more."
    )


def test_nothing_is_said_of_a_tidy_folder_or_of_chosen_pictures(folder):
    for name in ("1.png", "1.txt", "2.jpe"):
        (folder / name).write_bytes(PNG)
    assert folder_contents("dogs").left_out_sentence() == ""
    (folder / "clip.mp4").write_bytes(PNG)
    assert folder_contents("dogs", "1.png").left_out_sentence() == ""


def test_a_folder_of_folders_says_which_to_choose(folder):
    (folder / "10_my-dog dog").mkdir()
    (folder / "10_my-dog dog" / "a.png").write_bytes(PNG)
    with pytest.raises(
        ValueError, match=r"'dogs' holds no pictures itself.*; choose one of them, such as dogs/10_my-dog dog"
    ):
        picture_paths("dogs", "")
    assert names("dogs/10_my-dog dog") == ["a.png"]


def test_a_folder_without_pictures_says_what_is_there(folder):
    (folder / "clip.mp4").write_bytes(PNG)
    with pytest.raises(ValueError, match=r"'dogs' holds no pictures .*; drop .*Not used from the folder: clip.mp4"):
        picture_paths("dogs", "")


# ---------------------------------------------------------------------- captions
def beside(folder) -> list[str]:
    return [source.caption for source in sources_from_files("dogs", "", 1000)]


@pytest.mark.parametrize("name", ["a.txt", "a.caption", "a.png.txt", "a.png.caption", "a.TXT", "A.Caption"])
def test_where_a_caption_lies(folder, name):
    (folder / "a.png").write_bytes(PNG)
    (folder / name).write_text("{} on\n grass\n", encoding="utf-8")
    before = folder_fingerprint("dogs", "")
    assert beside(folder) == ["{} on grass"] and folder_contents("dogs").left_out == {}
    (folder / name).write_text("{} in snow, with a hat", encoding="utf-8")
    assert folder_fingerprint("dogs", "") != before
    assert [source.caption for source in sources_from_files("", "dogs/a.png", 1000)] == ["{} in snow, with a hat"]


def test_txt_counts_before_caption(folder):
    (folder / "a.png").write_bytes(PNG)
    for name in ("a.caption", "a.png.txt", "a.txt"):
        (folder / name).write_text(name)
    assert beside(folder) == ["a.txt"]
    assert set(folder_contents("dogs").left_out) == {"a.caption", "a.png.txt"}


@pytest.mark.parametrize("content, sentence", [
    (b"{} " * LARGEST_FILE, "a.txt has 197 KB, more than the 65.5 KB"),
    (b"caf\xe9 {}", "a.txt is not a text file in UTF-8")])
def test_a_caption_file_that_is_none(folder, content, sentence):
    (folder / "a.png").write_bytes(PNG)
    (folder / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        beside(folder)


@pytest.mark.parametrize("written, read", [
    ("a photo of <My-Dog>", "a photo of <my-dog>"), ("<MY-DOG>, brown_fur, <my-dog>", "<my-dog>, brown_fur, <my-dog>"),
    ("[name] and {}", "<my-dog> and <my-dog>"), (r"{}, \(toy\)", r"<my-dog>, \(toy\)"), ("", "")])
def test_how_the_placeholder_may_be_written(written, read):
    assert captions_for(["a.png"], [written], ("",), NAME) == [read]


def test_a_placeholder_inside_a_longer_word_is_none():
    assert captions_for(["a.png"], ["My-Dog runs"], ("",), "my-dog") == ["my-dog runs"]
    with pytest.raises(ValueError, match="does not name the subject; write my-dog or {}"):
        captions_for(["a.png"], ["two my-dogs run"], ("",), "my-dog")


def test_one_line_with_filewords_puts_the_name_before_tags():
    tags = ["1dog, brown fur", "", "sitting"]
    assert captions_for(list("abc"), tags, ("a photo of [name], [filewords]",), NAME) == [
        "a photo of <my-dog>, 1dog, brown fur", "a photo of <my-dog>", "a photo of <my-dog>, sitting"]
    assert captions_for(list("abc"), tags, ("{}, [filewords]\n{}\n[filewords] {}",), NAME) == [
        "<my-dog>, 1dog, brown fur", "<my-dog>", "sitting <my-dog>"]
    with pytest.raises(ValueError, match=r"caption of a, '1dog', does not name .* \{\}, \[filewords\] at captions"):
        captions_for(["a"], ["1dog"], ("",), NAME)


def test_only_line_breaks_divide_captions():
    text = "{} one two\r\n{} three four\r{} five"
    assert captions_for(list("abc"), ["", "", ""], (text,), NAME) == [
        "<my-dog> one two", "<my-dog> three four", "<my-dog> five"]


def test_prompt_lists_are_offered_but_captions_are_not(folder):
    for name in ("a.jpe", "prompts.json"):
        (folder / name).write_bytes(PNG)
    for name in ("a.TXT", "a.jpe.txt", "prompts.txt", "PROMPTS.TXT", "b.caption"):
        (folder / name).write_text("a {}")
    offered = [name for name in _text_files() if name.startswith("dogs/")]  # other tests leave prompts of theirs
    assert offered == ["dogs/PROMPTS.TXT", "dogs/prompts.txt"]


def test_the_list_of_prompt_files_is_bounded(folder, monkeypatch):
    from personalize.nodes.text import nodes_prompts

    monkeypatch.setattr(nodes_prompts, "MOST_FILES", 20)
    for number in range(50):
        (folder / f"{number}.txt").write_text("a {}")
    assert len(_text_files()) == 20
