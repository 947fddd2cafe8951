"""Words in prompts that hold other syntax: files, weights, tags of other packs, longer words, other spellings."""
from __future__ import annotations

import random
import unicodedata

import pytest
import torch
from safetensors.torch import save_file

from personalize.nodes.text.apply import clip_with_vectors, words_in
from personalize.nodes.text.concept import Concept, check_placeholder
from personalize.nodes.text.layout import FILLED
from personalize.nodes.text.placeholders import Placeholders, filled
from personalize.nodes.text.tokens import PromptTokenizer, Slot
from personalize.nodes.training.batch import Subject
from personalize.nodes.training.captions import captions_for
from personalize.nodes.training.recipe import TemplateRecipe
from personalize.nodes.visual_prompts.prompts import encode_with_picture
from personalize.nodes.visual_prompts.tokens import BLIP_DIFFUSION, VisualTokens
from support.layouts import tokens_in
from support.pictures import MadePicture
from support.prompts_by_hand import same_tokens, words_to_ids

FILES = {"my-dog": 1.0, "my-dog-2": 2.0, "dogs/my-dog": 3.0, "my-run/my-dog-000050": 4.0, "my(dog)": 5.0}
WORD = 9.0  # the first number of the word's vector, as the numbers above are those of the files' vectors


@pytest.fixture(scope="module")
def files(base):
    for name, number in FILES.items():
        path = base / "models" / "embeddings" / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"clip_l": torch.full((1, 32), number)}, path)
    yield
    for name in FILES:
        (base / "models" / "embeddings" / f"{name}.safetensors").unlink()


def read(clip, text: str) -> list[float | int]:
    """What a prompt of one chunk means: vectors by their first number, other tokens by id."""
    (chunk,) = clip.tokenize(text)["l"]
    ids = [float(token[0]) if isinstance(token, torch.Tensor) else token for token, _ in chunk[1:]]
    return ids[:ids.index(49407)]


def taught(clip, *words: str):
    for word in words:
        check_placeholder(word, "dog")
    return clip_with_vectors(clip, {word: {"clip_l": torch.full((1, 32), WORD + i)} for i, word in enumerate(words)})


@pytest.mark.parametrize("text", [
    "photo of embedding:my-dog", "photo of (embedding:my-dog:1.2), sunny", "embedding:my-dog",
    "embedding:my-dog-2 beside (a)embedding:dogs/my-dog", "photo\nembedding:my-run/my-dog-000050", "embedding: my-dog",
    "embedding:my-dog.safetensors", "embedding:my-dog, embedding:my-dog-2,", "embedding:my\\(dog\\) (embedding:my-dog)",
    "((embedding:my-dog:1.1) in snow:0.9)", "(embedding:dogs/my-dog)"])
@pytest.mark.parametrize("word", ["my-dog", "dogs/my-dog", "my-run", "safetensors-x"])
def test_a_files_own_name_wins(sd15, files, text, word):
    stock = sd15.clip.tokenize(text)["l"]
    assert any(isinstance(token, torch.Tensor) for chunk in stock for token, _ in chunk)
    assert same_tokens(taught(sd15.clip, word).tokenize(text)["l"], stock)


@pytest.mark.parametrize("word", ["<my-dog>", "my-cat", "ölbild-x"])
@pytest.mark.parametrize("before, after", [
    ("photo of embedding:", ""), ("photo of (embedding:", ":1.2)"), ("embedding:", ", sunny"),
    ("a photo,embedding:", ""),
    ("", ""), ("(", ":1.2)"), ("[", "]"), ("photo,", ",sunny"), ('"', '"'), ("(a)embedding:", " runs"),
    ("embedding:my-dog embedding:", ""), ("{red|blue} ", " BREAK day"), ("[", ":cat:0.5]"), ("cat AND ", ":0.8")])
def test_embedding_before_the_word_means_the_word(sd15, files, word, before, after):
    clip, text = taught(sd15.clip, word), f"{before}{word}{after}"
    assert read(clip, text).count(WORD) == 1
    plain = text.replace(f"embedding:{word}", f" {word}")  # the same prompt without "embedding:" in front of the word
    assert same_tokens(clip.tokenize(text)["l"], clip.tokenize(plain)["l"])
    (found,) = words_in(clip, text)
    assert found.word == word and text[:found.start] + text[found.end:] == before.replace(
        "embedding:", "" if before.endswith("embedding:") and before.count("embedding:") == 1 else "embedding:", 1
    ).removesuffix("embedding:") + after


@pytest.mark.parametrize("words, text, expected", [
    (["my-dog"], "a my-dog-2 and my-dog-000050", []), (["my-dog", "my-dog-2"], "my-dog-2 my-dog", [1, 0]),
    (["<dog>", "<dog>-2"], "<dog>-2, <dog> <dog>-like", [1, 0, 0]), (["my-dog"], "a my-dog-shaped cake", [0]),
    (["my-dog", "<my-dog>"], "<my-dog> my-dog", [1, 0]), (["my-dog"], "mymy-dog my-dogs my-dog's", [0]),
    (["my-dog"], "<lora:my-dog:1> my-dog <lora:my-dog:0.5:0.5> <lora:dogs/my-dog:1>", [0]),
    (["<my-dog>"], "<lora:<my-dog>:1> <my-dog>", [0, 0]), (["my-dog"], "__my-dog__ my_my-dog", []),
    (["a*b+c?"], "a*b+c? aab+c a*b+cc", [0]), (["**x7**"], "**x7** *x7*", [0]), (["x|y"], "{x|y} x", [0]),
    (["$1"], "$1 $11 $1-2 $1-a", [0, 0]), (["<my-dog>"], "<My-Dog> <MY-DOG>", [0, 0]),
    (["<My-dog>", "<my-dog>"], "<my-dog> <My-dog> <MY-dog>", [1, 0, 0]),
    (["<a>"], "embedding:missing<a> embedding:missing,<a>", [0, 0]), (["<a>"], "(embedding:missing:1.2)<a>", [0]),
    (["my-dog"], "\\(my-dog\\) # my-dog\n// my-dog", [0, 0, 0]), (["embedding-x"], "embedding:embedding-x", [0])])
def test_words_and_what_stands_around_them(sd15, words, text, expected):
    clip = taught(sd15.clip, *words)
    assert [number - WORD for number in read(clip, text) if isinstance(number, float)] == expected
    assert [words.index(found.word) for found in words_in(clip, text)] == expected


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("other", ["NFC", "NFD"])
def test_accents_may_be_composed_or_not(sd15, form, other):
    word, written = unicodedata.normalize(form, "my-café"), unicodedata.normalize(other, "my-café")
    assert read(taught(sd15.clip, word), f"{written}!") == [WORD, *words_to_ids("!")]
    bare = taught(sd15.clip, "my-cafe")
    assert WORD not in read(bare, f"{written} {other}"), "the accent belongs to the last letter"


def test_a_template_takes_the_word_also_where_a_prompt_would_not(sd15):
    tokenizer = PromptTokenizer(sd15.clip, {"my-dog": 2, "<cat>": 1})
    tokens = tokenizer.fill("two {}s beside <cat> and my-dog", "my-dog")
    assert [token for token, _ in tokens.chunks[0][1][0][2:5]] == [
        Slot("my-dog", 0), Slot("my-dog", 1), *words_to_ids("s")]
    assert tokens.layout.span(FILLED) == tokens.layout.span("my-dog") == (2, 3, 8,
                                                                          9) and tokens.layout.span("<cat>") == (6,)
    assert tokenizer.fill("a {} runs", "my-dog").chunks == tokenizer("a my-dog runs").chunks


@pytest.mark.parametrize("caption, expected", [
    ("a {} on grass", "a my-dog on grass"), ("A My-Dog on grass", "A my-dog on grass"), ("two {}s", "two my-dog s"),
    ("my-dogs on grass", None), ("my-dog-2", None), ("<lora:my-dog:1> a dog", None), ("<lora:{}:1>", None),
    ("un{}-2", "un my-dog -2"), ("embedding:{}, ({}:1.2)", "my-dog, (my-dog:1.2)")])
def test_captions_hold_the_word_itself(caption, expected):
    if expected is None:
        with pytest.raises(ValueError, match="does not name the subject"):
            captions_for(["a.png"], [""], [caption], "my-dog")
    else:
        assert captions_for(["a.png"], [""], [caption], "my-dog") == [expected]


def test_slots_are_filled_so_that_the_word_stays_one():
    assert filled("{}s and {}'s <{}> _{}_ x{}", "my-dog") == "my-dog s and my-dog's <my-dog> _ my-dog _ x my-dog"
    assert filled("{}s {} {}-2", "<my-dog>") == "<my-dog>s <my-dog> <my-dog>-2" and filled("no slot", "x") == "no slot"
    subject = Subject(Concept("my-dog", "dog", "dog"), (MadePicture(torch.zeros(1, 64, 64, 3)),))
    rows = TemplateRecipe(("two {}s",)).rows((subject,), 0, 2, 0)["subject"]
    assert [row.prompt for row in rows] == ["two my-dog s"] * 2


def test_a_picture_in_the_place_of_an_embedding(sd15):
    tokens = VisualTokens(torch.full((1, 4, 32), WORD), BLIP_DIFFUSION)
    with torch.inference_mode():
        plain, named = (encode_with_picture(sd15.clip, tokens, prompt) for prompt in ("{} dog", "embedding:{} dog"))
    assert torch.equal(plain[0][0], named[0][0]) and tokens_in(plain[0][1]) == tokens_in(named[0][1])


@pytest.mark.parametrize("text, expected", [
    ("<my-dog>embedding:", [WORD]), ("a <my-dog> embedding: ", [*words_to_ids("a"), WORD]),
    ("(<my-dog>)embedding:\n", [WORD]),
    ("<my-dog>embedding:my-dog-2", [WORD, FILES["my-dog-2"]])])
def test_embedding_with_nothing_after_it_stops_no_prompt(sd15, files, text, expected):
    assert read(taught(sd15.clip, "<my-dog>"), text) == expected


def test_any_mixture_of_syntax_reads_what_was_found(sd15, files):
    """As many vectors as words were found, and never an error."""
    pieces = ["my-dog", "<my-dog>", "embedding:", "embedding:my-dog", "(", ")", ":1.2)", "\\(", "\\)", "[", "]", " ",
              "\n", ",", "<", ">", "<lora:", ":", "-2", "{", "}", "|", "BREAK", "é", "e\u0301", "_", "\t", "😀", "\\",
              "/", '"']
    draw, clip = random.Random(0), taught(sd15.clip, "<my-dog>", "my-dog")
    for _ in range(600):
        text = "".join(draw.choices(pieces, k=draw.randrange(1, 12)))
        vectors = [number - WORD for number in read(clip, text) if isinstance(number, float) and number >= WORD]
        assert vectors == [["<my-dog>", "my-dog"].index(found.word) for found in words_in(clip, text)], text


def test_no_words_find_nothing():
    assert Placeholders(()).find("a <my-dog> embedding:x") == []
