"""Apply Concept: stock CLIP Text Encode understands placeholders exactly as it understands `embedding:name`."""
from __future__ import annotations

import copy

import nodes
import pytest
import torch

from personalize.nodes.text.apply import clip_with_vectors
from personalize.nodes.text.embedding_files import prompt_text, save_embedding
from personalize.nodes.text.encoders import text_encoders
from support.prompts_by_hand import chunks_by_hand, same_tokens

# What a person writes with a placeholder, and with a file; D is the one, C another.
PAIRS = [
    ("<my-dog>", "D"),
    ("a photo of <my-dog>", "a photo of D"),
    ("a photo of <my-dog> on the beach, at sunset", "a photo of D on the beach, at sunset"),
    ("a photo of <my-dog>, sitting", "a photo of D, sitting"),
    ("a photo of <my-dog>. Best quality!", "a photo of D . Best quality!"),
    ("<my-dog>'s hat", "D 's hat"),
    ("(<my-dog>:1.2)", "(D:1.2)"),
    ("a photo of (<my-dog>:1.2) in a [park]", "a photo of (D:1.2) in a [park]"),
    ("((a <my-dog> dog)), (blurry:0.5)", "((a D dog)), (blurry:0.5)"),
    ("(a (<my-dog>:1.3) and <cat>:0.8) \\(nice\\)", "(a (D:1.3) and C:0.8) \\(nice\\)"),
    ("<my-dog> and <cat>, <my-dog> <cat>", "D and C, D C"),
    ("<cat><my-dog>", "C D"),
    ("photo\n<my-dog>\nbeach", "photo\nD\nbeach"),
    ("photo:<my-dog>-like", "photo: D -like"),
    ("\\(<my-dog>\\)", "\\( D \\)"),
    ("many words " * 35 + "and <my-dog> on " + "a beach " * 40, "many words " * 35 + "and D on " + "a beach " * 40),
    ("very " * 73 + "<my-dog> " + "good " * 5 + "<cat>", "very " * 73 + "D " + "good " * 5 + "C"),
    ("no placeholder at all, (just:1.1) words", "no placeholder at all, (just:1.1) words"),
    ("", ""),
]


def vectors_for(clip, count: int, seed: int) -> dict[str, torch.Tensor]:
    noise = torch.Generator().manual_seed(seed)
    return {e.key: 0.1 * torch.randn(count, e.width, generator=noise) for e in text_encoders(clip)}


def encode(clip, text):
    with torch.inference_mode():
        (cond, options), = nodes.CLIPTextEncode().encode(clip, text)[0]
    return cond, options["pooled_output"]


def assert_same_conditioning(clip, text, reference_clip, reference_text):
    cond, pooled = encode(clip, text)
    expected, expected_pooled = encode(reference_clip, reference_text)
    assert torch.equal(cond, expected), text
    assert pooled is expected_pooled is None or torch.equal(pooled, expected_pooled), text


@pytest.mark.parametrize("counts", [(1, 2), (3, 9)])
def test_equals_the_files(any_checkpoint, counts):
    clip = any_checkpoint.clip
    dog, cat = vectors_for(clip, counts[0], 1), vectors_for(clip, counts[1], 2)
    files = {"D": prompt_text(save_embedding("apply-dog", dog, {})),
             "C": prompt_text(save_embedding("apply-cat", cat, {}))}
    taught = clip_with_vectors(clip, {"<my-dog>": dog, "<cat>": cat})
    in_series = clip_with_vectors(clip_with_vectors(clip, {"<cat>": cat}), {"<my-dog>": dog})
    for text, with_files in PAIRS:
        with_files = with_files.replace("D", files["D"]).replace("C", files["C"])
        for key, chunks in clip.tokenize(with_files).items():
            assert same_tokens(taught.tokenize(text)[key], chunks), text
            assert same_tokens(in_series.tokenize(text)[key], chunks), text
        assert_same_conditioning(taught, text, clip, with_files)


@pytest.mark.parametrize("count", [1, 5, 7, 8, 20, 64])
def test_chunks_equal_a_naive_split(any_checkpoint, count):
    clip = any_checkpoint.clip
    dog = vectors_for(clip, count, 3)
    taught = clip_with_vectors(clip, {"<my-dog>": dog})
    for before in (0, 1, 60, 66, 67, 68, 70, 74, 75, 76, 140):
        for after in (1, 7, 8, 80):
            text = "very " * before + "(<my-dog>:1.5) " + "good " * after
            for e in text_encoders(clip):
                pieces = [("very " * before, 1.0), (dog[e.key], 1.5), ("good " * after, 1.0)]
                assert same_tokens(taught.tokenize(text)[e.token_key], chunks_by_hand(pieces, e.tokenizer.pad_token)), (
                    before, after)


def test_clip_skip(sdxl):
    dog = vectors_for(sdxl.clip, 2, 4)
    file = prompt_text(save_embedding("apply-skip", dog, {}))
    for layer in (-1, -2):
        skip = nodes.CLIPSetLastLayer().set_last_layer
        reference = skip(sdxl.clip, layer)[0]
        for taught in (clip_with_vectors(reference, {"<my-dog>": dog}),
                       skip(clip_with_vectors(sdxl.clip, {"<my-dog>": dog}), layer)[0]):
            assert_same_conditioning(taught, "a <my-dog> runs", reference, f"a {file} runs")
    assert not torch.equal(encode(skip(sdxl.clip, -1)[0], file)[0], encode(skip(sdxl.clip, -2)[0], file)[0])


def test_the_original_is_untouched(any_checkpoint):
    clip = any_checkpoint.clip
    before = clip.tokenize("a <my-dog>")
    attributes = {id(e.tokenizer): dict(vars(e.tokenizer)) for e in text_encoders(clip)}
    taught = clip_with_vectors(clip, {"<my-dog>": vectors_for(clip, 2, 5)})
    assert clip.tokenize("a <my-dog>") == before
    assert {id(e.tokenizer): vars(e.tokenizer) for e in text_encoders(clip)} == attributes
    assert not torch.equal(encode(clip, "a <my-dog>")[0], encode(taught, "a <my-dog>")[0])
    assert torch.equal(encode(clip, "a red dog")[0], encode(taught, "a red dog")[0])
    assert taught.patcher.model is clip.patcher.model


@pytest.mark.smoke
def test_a_later_meaning_replaces_an_earlier_one(sd15):
    first, second = (vectors_for(sd15.clip, 1, seed) for seed in (6, 7))
    once = clip_with_vectors(sd15.clip, {"<my-dog>": first})
    twice = clip_with_vectors(once, {"<my-dog>": second})
    assert torch.equal(twice.tokenize("<my-dog>")["l"][0][1][0], second["clip_l"][0])
    assert torch.equal(once.tokenize("<my-dog>")["l"][0][1][0], first["clip_l"][0])


def test_placeholders_are_whole_words(sd15):
    known = {name: vectors_for(sd15.clip, 1, seed) for seed, name in enumerate(("qzx7", "<a>", "_x_"), start=8)}
    taught = clip_with_vectors(sd15.clip, known)

    def learned(text):
        return [next(name for name in known if torch.equal(known[name]["clip_l"][0], token))
                for chunk in taught.tokenize(text)["l"] for token, _ in chunk if isinstance(token, torch.Tensor)]

    assert learned("qzx7, qzx7s (qzx7:1.1) 1qzx7 qzx7. <a>qzx7") == ["qzx7", "qzx7", "qzx7", "<a>", "qzx7"]
    assert learned("my_x_y _x_ (_x_)") == ["_x_", "_x_"]
    assert learned("<a>b <A>") == ["<a>", "<a>"], "CLIP itself does not tell capitals apart"


def test_embedding_files_still_work_beside_placeholders(sd15):
    dog, cat = vectors_for(sd15.clip, 2, 11), vectors_for(sd15.clip, 1, 12)
    file = prompt_text(save_embedding("apply-beside", cat, {}))
    taught = clip_with_vectors(sd15.clip, {"<my-dog>": dog})
    dog_file = prompt_text(save_embedding("apply-beside-dog", dog, {}))
    assert_same_conditioning(taught, f"<my-dog> and {file}, <my-dog>", sd15.clip, f"{dog_file} and {file}, {dog_file}")
    missing = "a embedding:missing dog"
    assert_same_conditioning(taught, f"{missing} <my-dog>", sd15.clip, f"{missing} {dog_file}")


def test_word_ids_tell_the_placeholder_apart(sd15):
    taught = clip_with_vectors(sd15.clip, {"<my-dog>": vectors_for(sd15.clip, 3, 13)})
    ids = [word for _, _, word in taught.tokenize("a photo of <my-dog> here", return_word_ids=True)["l"][0]]
    assert ids[0] == 0 and len(set(ids[4:7])) == 1 and ids[4] not in ids[1:4] + ids[7:]


def test_names_that_the_pack_uses_itself_stay_free_for_files(sd15):
    dog, own = vectors_for(sd15.clip, 2, 14), vectors_for(sd15.clip, 1, 15)
    file = prompt_text(save_embedding("personalize-0", own, {}))
    taught = clip_with_vectors(sd15.clip, {"<my-dog>": dog})
    assert_same_conditioning(taught, f"a {file} dog", sd15.clip, f"a {file} dog")


def test_another_packs_named_embeddings_still_work(sd15):
    other = vectors_for(sd15.clip, 1, 16)["clip_l"]
    theirs = sd15.clip.clone()
    theirs.tokenizer = copy.copy(theirs.tokenizer)
    theirs.tokenizer.clip_l = tokenizer = copy.copy(theirs.tokenizer.clip_l)
    stock = tokenizer._try_get_embedding
    found = {2: lambda rest: (other, rest), 3: lambda rest: (other, "memory", rest)}[len(stock("none"))]
    tokenizer._try_get_embedding = lambda text: (found(text.partition(" ")[2].strip())
                                                 if text.split()[0] == "memory" else stock(text))
    both = clip_with_vectors(theirs, {"<my-dog>": vectors_for(sd15.clip, 2, 17)})
    tokens = [token for token, _ in both.tokenize("embedding:memory runs <my-dog>")["l"][0]]
    assert torch.equal(tokens[1], other[0]) and isinstance(tokens[2], int) and isinstance(tokens[4], torch.Tensor)


def test_no_placeholders_change_nothing(sd15):
    taught = clip_with_vectors(sd15.clip, {})
    assert taught.tokenize("a (red:1.2) dog") == sd15.clip.tokenize("a (red:1.2) dog")


@pytest.mark.slow
def test_the_full_width_of_sd15(stock_sd15):
    from support.inprocess import load_checkpoint

    clip = load_checkpoint(stock_sd15).clip
    dog = vectors_for(clip, 4, 18)
    assert dog["clip_l"].shape == (4, 768)
    file = prompt_text(save_embedding("apply-stock", dog, {}))
    taught = clip_with_vectors(clip, {"<my-dog>": dog})
    assert_same_conditioning(taught, "a (<my-dog>:1.2), in snow", clip, f"a ({file}:1.2) , in snow")
