"""File names made of what a person typed: one file for one thing, another one for another thing, on every file
system."""
from __future__ import annotations

import hashlib
import os
import unicodedata
from dataclasses import replace

import folder_paths
import pytest
import torch

from personalize.nodes import files
from personalize.nodes.names import folded, safe_name
from personalize.nodes.text.concept_files import load_concept
from personalize.nodes.text.embedding_files import file_stems, load_embedding, prompt_text, save_embedding
from personalize.nodes.text.embedding_layouts import LAYOUTS, SAFETENSORS
from support.prompts import node
from support.trainings import make_job, run, subject
from support.vectors import rows

LETTER = "é"
DECOMPOSED = unicodedata.normalize("NFD", LETTER)
ALIKE = [("<my-dog>", "my-dog!"), ("<Rex>", "<rex>"), ("<rex>", "rex"), ("<a/b>", "<a\\b>"), ("<a.>", "<.a>"),
         (f"<caf{LETTER}>", f"<caf{DECOMPOSED}>"), ("<straße>", "<STRASSE>"), ("<con>", "<con_>")]
NAMES = [("con", "con_"), ("NUL", "NUL_"), ("com1", "com1_"), ("lpt¹", "lpt¹_"), ("aux.old", "aux_.old"),
         ("dogs/prn", "dogs/prn_"), ("falcon", "falcon"), ("con-air", "con-air"), ("com10", "com10"),
         ("dog. . .", "dog"),
         ("...", None), (f"caf{DECOMPOSED}", f"caf{LETTER}"), ("x" * 200, "x" * 200), ("x" * 201, None),
         ("犬" * 66, "犬" * 66), ("犬" * 67, None)]


def content_of(folder):
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.rglob("*") if path.is_file()}


# ------------------------------------------------------------------------------------------------ names
@pytest.mark.parametrize("typed, name", NAMES)
def test_names_that_every_file_system_takes(typed, name):
    if name is None:
        with pytest.raises(ValueError, match="^The name '.*' (has no letter or digit|is too long for a file name);"):
            safe_name(typed, "The name")
    else:
        assert safe_name(typed, "The name") == name == safe_name(name, "The name")


@pytest.mark.parametrize("words", ALIKE)
def test_two_words_of_a_run_never_share_a_name(words):
    stems = file_stems(words)
    assert stems == file_stems(words[::-1]) and len({folded(stem) for stem in stems.values()}) == 2
    digests = {word: hashlib.sha256(word.encode()).hexdigest()[:6] for word in words}
    assert all(stem.endswith(f"-{digests[word]}") for word, stem in stems.items())


def test_a_word_alone_keeps_its_name_and_one_like_a_digest_is_told_apart():
    assert file_stems(["<my-dog>", "my-cat!"]) == {"<my-dog>": "my-dog", "my-cat!": "my-cat"}
    like = f"my-dog-{hashlib.sha256(b'my-dog!').hexdigest()[:6]}"
    assert len({folded(stem) for stem in file_stems(["<my-dog>", "my-dog!", like]).values()}) == 3


# ------------------------------------------------------------------------------------------------ embeddings
def test_the_same_content_under_a_name_is_the_same_file(embedding_folder):
    contents = [({"clip_l": rows(1, 768) + i}, {"class_words": words})
                for i, words in ((0, "dog"), (1, "dog"), (0, "cat"))]
    first = [save_embedding("my-dog", *content) for content in contents]
    assert [path.name for path in first] == ["my-dog.safetensors", "my-dog-2.safetensors", "my-dog-3.safetensors"]
    before = content_of(embedding_folder)
    assert [save_embedding("my-dog", *content) for content in contents[::-1]] == first[::-1]
    assert content_of(embedding_folder) == before


def test_a_name_is_taken_by_any_file_that_some_system_would_mistake_for_it(embedding_folder, tmp_path):
    vectors = {"clip_l": rows(1, 768)}
    assert save_embedding(f"Caf{LETTER}", vectors, {}).stem == f"Caf{LETTER}"
    assert save_embedding(f"caf{DECOMPOSED}", vectors, {}).stem == f"caf{LETTER}-2"
    (tmp_path / "second" / "deep").mkdir()
    (tmp_path / "second" / "deep" / "Rex.PT").write_bytes(b"")
    assert [save_embedding("rex", vectors, {}).stem for _ in range(2)] == ["rex-2", "rex-2"]


@pytest.mark.parametrize("layout", [SAFETENSORS, *LAYOUTS])
def test_two_servers_that_save_at_once_do_not_overwrite_each_other(embedding_folder, monkeypatch, layout):
    """The other server's file appears when this one's is written, just before it takes its name."""
    about, flush = {"placeholder": "<rex>"}, files._flush_to_disk

    def other_is_faster(path):
        flush(path)
        monkeypatch.setattr(files, "_flush_to_disk", flush)
        theirs.append(save_embedding("rex", {"clip_l": rows(2, 768)}, about, layout=layout))

    theirs: list = []
    monkeypatch.setattr(files, "_flush_to_disk", other_is_faster)
    mine = save_embedding("rex", {"clip_l": rows(1, 768)}, about, layout=layout)
    assert (theirs[0].stem, mine.stem) == ("rex", "rex-2")
    assert [len(load_embedding(path)[0]["clip_l"]) for path in (theirs[0], mine)] == [2, 1]


def test_a_file_system_without_links_takes_files_too(embedding_folder, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(95, "Operation not supported")))
    assert save_embedding("rex", {"clip_l": rows(1, 768)}, {}) == embedding_folder / "rex.safetensors"
    (embedding_folder / "max.safetensors").mkdir()
    with pytest.raises(OSError, match="Could not write .*max.safetensors"):
        save_embedding("max", {"clip_l": rows(1, 768)}, {})
    assert sorted(os.listdir(embedding_folder)) == ["max.safetensors", "rex.safetensors"]


def test_folders_that_overlap_or_are_links_hold_a_file_once(embedding_folder, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(embedding_folder, target_is_directory=True)
    roots = [str(tmp_path / "link"), str(embedding_folder), str(tmp_path)]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "embeddings", (roots, {".safetensors"}))
    paths = [save_embedding("rex", {"clip_l": rows(1, 768)}, {}) for _ in range(3)]
    assert paths == [tmp_path / "link" / "rex.safetensors"] * 3


def test_a_file_of_a_long_name_still_gives_a_word(embedding_folder):
    path = embedding_folder / f"{'犬' * 75}.pt"
    torch.save({"string_to_param": {"*": rows(1, 768)}}, path)
    assert load_concept(path).placeholder == f"<{'犬' * 40}>"


def test_save_concept_again_after_a_restart_gives_the_same_file(execute, embeddings):
    for number, word in enumerate(("<my-dog>", "my-dog!")):
        save_embedding(f"start-{number}", {"clip_l": rows(1, 32) + number}, {"placeholder": word, "class_words": "dog"})

    def saved(name, start):
        prompt = {"1": node("PersonalizeLoadConcept", embedding=start, placeholder="", class_words=""),
                  "2": node("PersonalizeSaveConcept", concept=["1", 0], name=name)}
        return execute(prompt, get={"text": ["2", 0]}).values["text"]  # each call begins with an empty cache

    names = [saved(*each) for each in [("", "start-0"), ("", "start-1"), ("rex", "start-0"), ("rex", "start-1")]]
    assert names == ["embedding:my-dog", "embedding:my-dog-2", "embedding:rex", "embedding:rex-2"]
    before = content_of(embeddings)
    assert [saved("rex", "start-1"), saved("", "start-1"), saved("", "start-0")] == [names[3], names[1], names[0]]
    assert content_of(embeddings) == before


# ------------------------------------------------------------------------------------------------ runs
@pytest.mark.usefixtures("execute")
def test_a_run_of_two_words_alike_writes_its_files_once(sd15):
    job = make_job(sd15, "alike", steps=2, save_every=1,
                   subjects=(subject(placeholder="<my-dog>"), subject(placeholder="my-dog!")))
    first = run(job)
    files = [saved["files"] for saved in first.report["saved"]]
    kept = folder_paths.get_folder_paths("embeddings")[0]
    before = [path for path in os.listdir(os.path.join(kept, first.report["run"]))]
    assert len(before) == 4 and len({path for paths in files for path in paths}) == 4
    again = [run(replace(job, resume="start over")), run(job)]
    assert [[saved["files"] for saved in each.report["saved"]] for each in again] == [files, files]
    assert sorted(os.listdir(os.path.join(kept, first.report["run"]))) == sorted(before)
    halfway = run(replace(job, use_step=1))
    for concept, text in zip(halfway.concepts, first.report["saved"][0]["embeddings"]):
        stem = file_stems(["<my-dog>", "my-dog!"])[concept.placeholder]
        assert text == f"embedding:{first.report['run']}/{stem}-000001"


@pytest.mark.usefixtures("execute")
@pytest.mark.parametrize("changes", [{"subjects": (subject(placeholder=f"<{'w' * 300}>"),)},
                                     {"subjects": (subject(placeholder=f"<{'犬' * 90}>"),)}, {"name": "n" * 170}])
def test_a_name_too_long_is_told_before_the_first_step(sd15, steps_taken, changes):
    with pytest.raises(ValueError, match="is too long for a file name; write at most 160 letters, or 53"):
        run(make_job(sd15, **{"name": "long-word", "steps": 2, **changes}))
    assert steps_taken == []


@pytest.mark.usefixtures("execute")
def test_the_longest_names_train(sd15):
    word = f"<{'w' * 160}>"
    outcome = run(make_job(sd15, "n" * 160, steps=1, subjects=(subject(placeholder=word),)))
    assert outcome.report["saved"][0]["embeddings"] == [f"embedding:{outcome.report['run']}/{'w' * 160}-000001"]
    assert prompt_text(outcome.report["saved"][0]["files"][0]) == outcome.report["saved"][0]["embeddings"][0]
