"""Words that Apply Concept taught outlive what nodes and other packs do to a CLIP."""
from __future__ import annotations

import copy
import pickle

import nodes
import pytest
import torch

from personalize.nodes.text.apply import apply_concepts, clip_with_vectors, known_placeholders
from personalize.nodes.text.concept import Concept
from personalize.nodes.text.encoders import text_encoders
from support.companions import own_tokenizers
from support.prompts_by_hand import same_tokens

TEXT = "a photo of (<my-dog>:1.2) and embedding:<cat>"


def taught(clip):
    noise = torch.Generator().manual_seed(3)
    vectors = {word: {e.key: torch.randn(count, e.width, generator=noise) for e in text_encoders(clip)}
               for word, count in (("<my-dog>", 2), ("<cat>", 1))}
    return clip_with_vectors(clip, vectors)


def with_lora(clip):
    name = next(name for name in clip.cond_stage_model.state_dict() if name.endswith("mlp.fc1.weight"))
    size = clip.cond_stage_model.state_dict()[name].shape
    changed = clip.clone()
    assert changed.add_patches({name: ("diff", (0.1 * torch.ones(size),))}) == [name]
    return changed


WAYS = {
    "clone": lambda clip: clip.clone(), "copy": copy.copy, "tokenizer": lambda clip: with_tokenizer(clip, copy.copy),
    "deep": lambda clip: with_tokenizer(clip, copy.deepcopy),
    "pickled": lambda clip: with_tokenizer(clip, lambda tokenizer: pickle.loads(pickle.dumps(tokenizer))),
    "last layer": lambda clip: nodes.CLIPSetLastLayer().set_last_layer(clip, -2)[0], "LoRA": with_lora,
    "another concept": lambda clip: apply_concepts(clip, [Concept("<hat>", "hat", "red hat")])}


def with_tokenizer(clip, copied):
    made = clip.clone()
    made.tokenizer = copied(clip.tokenizer)
    return made


@pytest.mark.parametrize("way", WAYS)
def test_copies_and_changes_of_a_clip_keep_the_words(sdxl, way):
    clip = taught(sdxl.clip)
    expected = clip.tokenize(TEXT)
    assert sum(isinstance(token, torch.Tensor) for token, _ in expected[text_encoders(clip)[0].token_key][0]) == 3
    with torch.inference_mode():
        changed = WAYS[way](clip)
        for key, chunks in changed.tokenize(TEXT).items():
            assert same_tokens(chunks, expected[key])
        cond, options = changed.encode_from_tokens(changed.tokenize(TEXT), return_pooled=True)
        same = WAYS[way](sdxl.clip).encode_from_tokens(expected, return_pooled=True)
    assert torch.equal(cond, same[0]) and (options is same[1] is None or torch.equal(options, same[1]))
    assert {"<my-dog>", "<cat>"} <= set(known_placeholders(changed))


def test_attributes_that_another_pack_sets_and_deletes(sdxl, caplog):
    clip = taught(sdxl.clip)
    before = clip.tokenize(TEXT)
    with own_tokenizers(clip):
        clip.tokenize("a plain dog")
        assert not caplog.messages
        inside = clip.tokenize("<my-dog>, dog")
        (said,) = caplog.messages
    assert said.startswith("<my-dog> was taught by Apply Concept, but this node splits prompts by rules of its own")
    assert not any(isinstance(token, torch.Tensor) for key in inside for token, _ in inside[key][0])
    for key, chunks in clip.tokenize(TEXT).items():
        assert same_tokens(chunks, before[key]), "the next node reads the words again"
    with own_tokenizers(clip):  # another Apply Concept meanwhile, as a node that runs others would
        again = apply_concepts(clip, [Concept("<hat>", "hat", "hat")])
    for key, chunks in again.tokenize(TEXT).items():
        assert same_tokens(chunks, before[key])
    assert len(caplog.messages) == 1


def test_attributes_of_another_pack_that_stay(sd15):
    clip = taught(sd15.clip)
    tokenizer = clip.tokenizer.clip_l
    stock, seen = tokenizer.tokenize_with_weights, []
    tokenizer.tokenize_with_weights = lambda text, *args, **kwargs: (seen.append(text), stock(text, *args, **kwargs))[1]
    assert same_tokens(clip.tokenize(TEXT)["l"], taught(sd15.clip).tokenize(TEXT)["l"]) and seen == [TEXT]


def test_its_class_is_still_what_others_ask_for(sdxl):
    stock, clip = sdxl.clip.tokenizer, taught(sdxl.clip)
    pairs = [(stock, clip.tokenizer)] + [(getattr(stock, e.attribute), e.tokenizer) for e in text_encoders(clip)]
    for theirs, ours in pairs:
        assert isinstance(ours, type(theirs)) and type(ours).__name__ == type(theirs).__name__
        assert type(taught(clip).tokenizer) is type(clip.tokenizer), "teaching again adds no further class"
