"""Concepts: which placeholders are refused, and where a concept's first vectors come from."""
from __future__ import annotations

import pytest
import torch

from personalize.nodes.text.apply import apply_concepts
from personalize.nodes.text.concept import Concept, check_placeholder, initial_vectors
from personalize.nodes.text.encoders import text_encoders
from personalize.nodes.text.vectors import WordVectors
from support.prompts_by_hand import words_to_ids


@pytest.mark.parametrize("placeholder", ["<my-dog>", "<dog>", "my-dog", "<s1>", "qzx7", "<狗狗>", "S*"])
def test_names_of_ones_own_are_accepted(placeholder):
    check_placeholder(placeholder, "dog")


@pytest.mark.parametrize("placeholder, class_words, sentence", [
    ("", "dog", "Placeholder is empty"),
    ("<my dog>", "dog", "'<my dog>' contains a space"),
    ("my\tdog", "dog", "contains a space"), ("<my//dog>", "dog", "begin comments"), ("x/*7", "dog", "begin comments"),
    ("(dog)", "dog", "bracket"), ("{}", "dog", "bracket"), ("[v]", "dog", "bracket"), ("a:b", "dog", "colon"),
    ("a,b", "dog", "comma"), ("a\\b", "dog", "backslash"),
    ("Dog", "dog", "equals the class word 'dog'"), ("bear", "teddy bear", "equals the class word 'teddy bear'"),
    ("teddybear", "teddybear", "equals the class word"),
    ("dog", "cat", "is a word the text encoder already knows.*<dog>"), ("Photo", "cat", "already knows"),
    ("2", "cat", "already knows"), ("sks", "dog", "already knows"),
    ("*", "dog", "no letter or digit"), ("<>", "dog", "no letter or digit"),
])
def test_words_of_ordinary_prompts_are_refused_with_a_sentence(placeholder, class_words, sentence):
    with pytest.raises(ValueError, match=sentence) as refused:
        check_placeholder(placeholder, class_words)
    assert "\n" not in str(refused.value)


def table_rows(clip, attribute: str, ids: list[int]) -> torch.Tensor:
    text_model = getattr(clip.cond_stage_model, attribute).transformer.text_model
    return text_model.embeddings.token_embedding.weight[ids].float()




def test_initial_words_give_their_rows_of_every_encoder(any_checkpoint):
    clip, (teddy, bear, dog) = any_checkpoint.clip, words_to_ids("teddy bear dog")
    for count, ids in ((1, [teddy]), (2, [teddy, bear]), (4, [teddy, bear, bear, bear])):
        found = initial_vectors(Concept("<x>", "dog", "teddy bear", count), clip)
        for key, rows in found.items():
            assert rows.dtype == torch.float32 and torch.equal(rows, table_rows(clip, key, ids))
    for key, rows in initial_vectors(Concept("<x>", "dog", ""), clip).items():
        assert torch.equal(rows, table_rows(clip, key, [dog]))


def test_initial_vectors_belong_to_the_caller(any_checkpoint):
    clip = any_checkpoint.clip
    concept = Concept("<x>", "dog", "").with_vectors({e.key: torch.randn(2, e.width) for e in text_encoders(clip)})
    assert concept.count == 2
    with torch.inference_mode(False):
        mine = initial_vectors(concept, clip)
        for rows in mine.values():
            rows += 1
    assert all(torch.equal(mine[key], concept.vectors[key] + 1) for key in mine)


def test_vectors_of_another_family_are_refused(sd15, sdxl):
    wide = Concept("<x>", "dog", "").with_vectors({"clip_l": torch.zeros(1, 5)})
    with pytest.raises(ValueError, match="width 5 for clip_l but this CLIP's width is 32"):
        initial_vectors(wide, sd15.clip)
    single = Concept("<x>", "dog", "").with_vectors({"clip_l": torch.zeros(1, 32)})
    with pytest.raises(ValueError, match="vectors for clip_l but this CLIP needs clip_g"):
        initial_vectors(single, sdxl.clip)
    with pytest.raises(ValueError, match="neither initial words nor class words"):
        initial_vectors(Concept("<x>", "", ""), sd15.clip)


def test_encoders_of_each_family(any_checkpoint):
    clip = any_checkpoint.clip
    encoders = {e.key: (e.token_key, e.width) for e in text_encoders(clip)}
    assert encoders in ({"clip_l": ("l", 32)}, {"clip_h": ("h", 40)}, {"clip_l": ("l", 32), "clip_g": ("g", 48)})
    assert set(clip.tokenize("x")) == {token_key for token_key, _ in encoders.values()}
    assert text_encoders(clip)[0].word_ids("a photo of a dog") == words_to_ids("a photo of a dog")


def test_other_text_encoders_are_named(sd15):
    from comfy.sd1_clip import SDTokenizer

    clip = sd15.clip.clone()
    clip.tokenizer = type("T5Tokenizer", (), {})()
    with pytest.raises(ValueError, match="This CLIP has no text encoder"):
        text_encoders(clip)
    clip.tokenizer.t5xxl = SDTokenizer()
    with pytest.raises(ValueError, match="'t5xxl', which is neither CLIP, T5 nor a language model"):
        text_encoders(clip)


def test_axes_of_vectors_have_names(sd15):
    rows = torch.arange(12.0).reshape(3, 2, 2)
    per_row = WordVectors({"clip_l": rows}, "row")
    assert per_row.count == 2 and torch.equal(per_row.at(1)["clip_l"], rows[1]) and per_row.at(1).axis is None
    with pytest.raises(ValueError, match=r"shape \(3, 2, 2\) but should have the axes \(n, d\)"):
        WordVectors({"clip_l": rows})
    with pytest.raises(ValueError, match=r"should have the axes \(layer, n, d\)"):
        WordVectors({"clip_l": rows[0]}, "layer")
    concept = Concept("<x>", "dog", "dog").with_vectors(WordVectors({"clip_l": torch.zeros(16, 2, 32)}, "layer"))
    assert concept.count == 2 and concept.vectors.axis == "layer"
    with pytest.raises(ValueError, match="has vectors for each layer of a model, which a CLIP alone cannot carry"):
        apply_concepts(sd15.clip, [concept])
