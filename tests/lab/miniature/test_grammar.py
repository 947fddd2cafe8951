"""The sentences say what the pictures show, and the real tokenizer takes them."""
from __future__ import annotations

import random

import pytest

from miniature.factors import BACKGROUNDS, CLASSES, COLOR_NAMES, POSES, sample_scene
from miniature.grammar import PLACES, Said, caption, every_word, said


def agrees(scene, words: Said) -> list[str]:
    """The names of the stated factors that the scene does not have."""
    truth = {
        "kind": scene.identity.kind, "pattern": scene.identity.pattern, "first": scene.identity.first.name,
        "second_color": scene.identity.second.name, "pose": scene.pose, "accessory": scene.accessory,
        "background": scene.background, "style": scene.style,
        "relation": scene.second and scene.second.relation, "second_kind": scene.second and scene.second.kind,
    }
    return [name for name, value in truth.items() if getattr(words, name) not in (None, value)]


def test_whatever_a_caption_says_is_true_of_its_scene():
    rng = random.Random(1)
    stated = 0
    for _ in range(3000):
        scene = sample_scene(rng)
        text = caption(scene, rng)
        words = said(text)
        assert agrees(scene, words) == [], (text, scene)
        assert words.kind == scene.identity.kind, text
        stated += words.background is not None
    assert stated > 2000


def test_every_factor_is_stated_often():
    rng = random.Random(2)
    spoken = [said(caption(sample_scene(rng), rng)) for _ in range(3000)]
    for name, share in {"pattern": 0.3, "second_color": 0.2, "pose": 0.35, "accessory": 0.2, "background": 0.75,
                        "style": 0.3, "relation": 0.12, "second_kind": 0.12}.items():
        assert sum(getattr(s, name) is not None for s in spoken) > share * 3000, name
    assert {s.kind for s in spoken} == set(CLASSES)
    assert {s.background for s in spoken} == {*BACKGROUNDS, None}
    assert {s.pose for s in spoken} == {*POSES, None}
    assert {s.first for s in spoken} == {*COLOR_NAMES, None}


def test_unnamed_identities_are_never_described():
    rng = random.Random(3)
    unnamed = [scene for scene in (sample_scene(rng) for _ in range(800)) if not scene.identity.named]
    assert len(unnamed) > 100
    for scene in unnamed:
        words = said(caption(scene, rng, looks=1.0))
        assert (words.pattern, words.first) == (None, None)


def test_a_caption_can_leave_looks_and_pose_to_a_reference():
    rng = random.Random(4)
    silent = [said(caption(sample_scene(rng), rng, looks=0.0, pose=0.0)) for _ in range(300)]
    assert {(words.pattern, words.first, words.pose) for words in silent} == {(None, None, None)}


@pytest.mark.parametrize("text, expected", [
    ("photo of a <my-dog> dog with jumping pose in beach background",
     Said(kind="dog", pose="jumping", background="beach", style="photo")),
    ("a <my-dog> wearing a hat on the red carpet next to a green and blue striped cat",
     Said(accessory="hat", background="carpet", relation="next to", second_kind="cat")),
    ("a painting of a red teapot on top of a box at night",
     Said(kind="teapot", pattern="plain", first="red", background="night", style="drawing", relation="on top of",
          second_kind="box")),
    ("a dark red and blue striped dog next to a pale teal cat", Said(
        kind="dog", pattern="striped", second_color="blue", relation="next to", second_kind="cat")),
    ("an upside down pink and cyan two-tone car", Said(kind="car", pattern="two-tone", first="pink",
                                                       second_color="cyan", pose="upside down")),
])
def test_prompts_of_the_papers_are_read(text, expected):
    assert said(text) == expected


def test_captions_fit_the_real_tokenizer():
    from comfy.sd1_clip import SDTokenizer

    tokenizer = SDTokenizer(embedding_size=128)
    rng = random.Random(4)
    vocabulary = {token for token, _ in _tokens(tokenizer, every_word())}
    longest = 0
    for _ in range(2000):
        tokens = [token for token, _ in _tokens(tokenizer, caption(sample_scene(rng), rng))]
        longest = max(longest, tokens.index(49407) + 1)
        assert set(tokens) <= vocabulary
    assert longest <= 77


def _tokens(tokenizer, text):
    return [pair for chunk in tokenizer.tokenize_with_weights(text) for pair in chunk]


def test_every_place_is_told_from_the_others():
    for background, phrases in PLACES.items():
        for phrase in phrases:
            assert said(f"a dog {phrase}").background == background
