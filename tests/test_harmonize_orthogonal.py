"""Eq. 3 against a Gram–Schmidt loop in float64, and which words of a prompt it takes."""
from __future__ import annotations

import pytest
import torch

from personalize.nodes.papers.harmonize.basis import A_VECTOR, ALL, WORDS, WORDS_AND_END, basis_tokens
from personalize.nodes.papers.harmonize.nodes_orthogonal import PersonalizeOrthogonalize
from personalize.nodes.papers.harmonize.orthogonal import orthogonalised, parallel_share, text_basis
from personalize.nodes.text.layout import END, LAYOUT, LEARNED, PADDING, START, VISUAL, layout_in
from personalize.nodes.text.nodes_prompts import PersonalizeEncodeWithSpans
from personalize.nodes.visual_prompts.tokens import VisualTokens
from support.layouts import of_tokens, spans_in, tokens_in


def gram_schmidt(tokens: torch.Tensor, tolerance: float = 1e-6) -> list[torch.Tensor]:
    """t̄_j of Eq. 3 one after the other, twice over for the sake of rounding; what is not new is skipped."""
    basis: list[torch.Tensor] = []
    for token in tokens.double():
        rest = token
        for _ in range(2):
            for direction in basis:
                rest = rest - (direction @ rest) * direction
        if rest.norm() > tolerance * token.norm():
            basis.append(rest / rest.norm())
    return basis


def by_hand(visual: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """v⊥ of Eq. 3: every ⟨t̄_j, v⟩ t̄_j taken away in a loop."""
    result, basis = visual.double().clone(), gram_schmidt(tokens)
    for v, row in zip(visual.double(), result):
        for direction in basis:
            row -= (direction @ v) * direction
    return result


def overlap(orthogonal: torch.Tensor, visual: torch.Tensor, tokens: torch.Tensor) -> float:
    """Largest |⟨v⊥, t⟩| / (‖v‖ ‖t‖)."""
    products = (orthogonal.double() @ tokens.double().T).abs()
    return float((products / (visual.double().norm(dim=-1)[:, None] * tokens.double().norm(dim=-1))).max())


def random(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


CORRELATED = random(1, 768) + 0.2 * random(40, 768, seed=1)  # as encoded words are


@pytest.mark.parametrize("tokens, rank", [
    (random(12, 768), 12),
    (CORRELATED, 40),
    (torch.cat([CORRELATED, CORRELATED[:7]]), 40),  # words that are repeated exactly
    (torch.cat([CORRELATED, CORRELATED[:3].sum(0, keepdim=True), torch.zeros(1, 768)]), 40),
    (28 * random(154, 768), 154),  # two chunks
    (random(5, 3), 3),  # all there is
    (torch.zeros(0, 768), 0),
    (torch.zeros(2, 768), 0),
], ids=["few", "correlated", "repeated", "dependent", "154", "full", "none", "zero"])
def test_orthogonal_part(tokens, rank):
    visual = 3 * random(16, tokens.shape[1], seed=2) + tokens.sum(0)
    basis = text_basis(tokens)
    assert len(basis) == rank and torch.allclose(basis @ basis.T, torch.eye(rank, dtype=torch.float64), atol=1e-12)
    found, expected = orthogonalised(visual, basis), by_hand(visual, tokens)
    assert found.dtype == visual.dtype
    assert torch.allclose(found.double(), expected, rtol=0, atol=1e-5 * float(visual.norm(dim=-1).max()))
    share = 1 - float(expected.square().sum() / visual.double().square().sum())
    assert parallel_share(visual, basis) == pytest.approx(share, abs=1e-6)
    if rank:
        words = tokens[tokens.norm(dim=-1) > 0]
        assert overlap(found, visual, words) <= 1e-5
        assert overlap(found.half(), visual, words) <= 1e-4
        assert overlap(found.bfloat16(), visual, words) <= 1e-3
        assert overlap(visual, visual, words) > 0.01, "there was something to take out"
    else:
        assert found is visual


@pytest.mark.smoke
def test_strength():
    visual, basis = random(4, 64), text_basis(random(5, 64, seed=1))
    assert orthogonalised(visual, basis, 0.0) is visual
    half, whole = (orthogonalised(visual, basis, s) for s in (0.5, 1.0))
    assert torch.allclose(half, (visual + whole) / 2, atol=1e-6)


# ------------------------------------------------------------------------------------------------ which tokens
def tokens_of(*words, length=20):
    return [START, *words, END, *[PADDING] * (length - len(words) - 2)]


@pytest.mark.parametrize("words, subject, positions, used, excluded", [
    (("a", "dog", "swimming", "in", "the", "river"), ["dog"], (3, 4, 6), ("swimming", "in", "river"),
     ("a", "dog", "the")),
    (("an", LEARNED, LEARNED, "dog", "jumps"), ["dog"], (5,), ("jumps",), ("an", A_VECTOR, "dog")),
    (("a", "teddy", "bear", "and", "a", "bear"), ["Teddy Bear"], (4, 6), ("and", "bear"), ("a", "teddy", "bear")),
    (("a", "dog", "'s", "tokyo-", "oo-", "o", "hat"), ["dog's", "tokyoooo"], (7,), ("hat",),
     ("a", "dog", "'s", "tokyoooo")),
    (("tokyo-", "ooo", "-", "hat"), [], (1, 2, 3, 4), ("tokyoooo", "-", "hat"), ()),
    (("red", "dog", "red", "hat"), ["dog"], (1, 3, 4), ("red", "hat"), ("dog",)),
    (("a", "dog"), ["dog"], (), (), ("a", "dog")),
    ((), ["dog"], (), (), ()),
])
def test_words_of_the_basis(words, subject, positions, used, excluded):
    found = basis_tokens(of_tokens(tokens_of(*words)), subject, WORDS)
    assert (found.positions, found.used, found.excluded) == (positions, used, excluded)


@pytest.mark.parametrize("words, kept, repetitions", [
    (("a", "dog", "swims", ",") * 4 + ("a", "dog"), (3, 4), 5),
    (("a", "dog", "swims", ",", "a", "dog", "swims"), (3, 4), 2),
    (("dog", "runs", ",") * 3 + ("dog", "ru-"), (2, 3), 4),  # the encoder's end cuts a word
    (("dog", "sees", "dog"), (2,), 1),
    (("red", "dog", "red", "hat"), (1, 3, 4), 1),
])
def test_repeated_prompts_count_once(words, kept, repetitions):
    found = basis_tokens(of_tokens(tokens_of(*words)), ["dog"], WORDS)
    assert (found.positions, found.repetitions) == (kept, repetitions)


def test_visual_tokens_among_the_words():
    """BLIP-Diffusion inserts them after the article, in the first repetition alone."""
    words = ("a", VISUAL, VISUAL, "dog", "swims", ",", "a", "dog", "swims", ",")
    found = basis_tokens(of_tokens(tokens_of(*words)), ["dog"], WORDS)
    assert (found.positions, found.repetitions) == ((5, 6), 2)


def test_end_and_padding_by_choice():
    tokens = tokens_of("a", "dog", "swims", length=8) + tokens_of("fast", length=8)
    assert basis_tokens(of_tokens(tokens), ["dog"], WORDS).positions == (3, 9)
    assert basis_tokens(of_tokens(tokens), ["dog"], WORDS_AND_END).positions == (3, 4, 9, 10)
    assert basis_tokens(of_tokens(tokens), ["dog"], ALL).positions == (0, *range(3, 16))
    assert basis_tokens(of_tokens(tokens), ["dog", "cat"], WORDS).absent == ("cat",)


# ------------------------------------------------------------------------------------------------ the node
def orthogonalize(conditioning, **changed):
    inputs = {"words": "dog", "strength": 1.0, "basis": WORDS, "last_tokens": 0, **changed}
    return PersonalizeOrthogonalize.execute(conditioning, **inputs).args


def encoded(clip, text):
    return PersonalizeEncodeWithSpans.execute(clip, text, "").args[0]


def width(clip):
    return encoded(clip, "")[0][0].shape[-1]


def visual_tokens(clip, pictures=1, count=4):
    return VisualTokens(3 * random(pictures, count, width(clip), seed=5), "a test")


@pytest.mark.parametrize("prompt", ["a dog swimming in the river", "a (dog:1.2) (swimming:1.4) (in:0.5) the river"])
def test_text_and_visual_tokens_are_joined(any_checkpoint, prompt):
    clip = any_checkpoint.clip
    text, visual = encoded(clip, prompt), visual_tokens(clip)
    before = text[0][0].clone()
    conditioning, tokens, report, rank = orthogonalize(text, visual_tokens=visual)
    tensor, options = conditioning[0]
    expected = by_hand(visual.vectors[0], before[0, [3, 4, 6]])
    assert tensor.shape == (1, 81, width(clip)) and torch.equal(tensor[:, :77], before)
    assert torch.equal(text[0][0], before) and VISUAL not in spans_in(text[0][1]), "what was given is unchanged"
    for found in (tensor[0, 77:], tokens.vectors[0]):
        assert torch.allclose(found.double(), expected, atol=1e-5)
    assert (rank, tokens.source) == (3, "a test")
    assert spans_in(options)[VISUAL] == (77, 78, 79, 80) and layout_in(options).length == 81
    assert tokens_in(options) == tokens_in(text[0][1]) + (VISUAL,) * 4
    for key in text[0][1]:
        if key != LAYOUT:
            assert options[key] is text[0][1][key], "such as SDXL's pooled output"
    assert report.startswith("Rank 3 of width") and "Words: swimming in river." in report
    assert "Left out: a dog the." in report


def test_what_already_stands_there_is_replaced(any_checkpoint):
    """Once v is part of the conditioning: known by itself, or as the last tokens after a stock node."""
    clip = any_checkpoint.clip
    text, visual = encoded(clip, "a dog swimming"), visual_tokens(clip)
    joined = orthogonalize(text, visual_tokens=visual, strength=0.0)[0]
    assert torch.equal(joined[0][0][:, 77:], visual.vectors), "strength 0 leaves v as it is"
    expected = orthogonalize(text, visual_tokens=visual)
    again = orthogonalize(joined)
    assert torch.equal(again[0][0][0], expected[0][0][0]) and torch.equal(again[1].vectors, expected[1].vectors)
    foreign = [[joined[0][0], {}]]
    last = orthogonalize(foreign, last_tokens=4, clip=clip, prompt="a dog swimming")
    assert torch.equal(last[0][0][0], expected[0][0][0]) and last[3] == 1


@pytest.mark.parametrize("strength_type", ["multiply", "attn_bias"])
def test_after_apply_style_model(sd15, strength_type):
    """ComfyUI's own Redux and its node: the conditioning says what its text is, but nothing of the picture's tokens."""
    import nodes
    from comfy.clip_vision import Output
    from comfy.ldm.flux.redux import ReduxImageEncoder
    from comfy.sd import StyleModel

    text = encoded(sd15.clip, "a dog swimming in the river")
    redux = ReduxImageEncoder(redux_dim=6, txt_in_features=width(sd15.clip))
    for parameter in redux.parameters():
        parameter.data = random(*parameter.shape, seed=parameter.numel())
    seen = Output()
    seen.last_hidden_state = random(1, 9, 6, seed=4)
    with torch.inference_mode():
        given, = nodes.StyleModelApply().apply_stylemodel(text, StyleModel(redux), seen, 0.7, strength_type)
        (tensor, options), = orthogonalize(given, last_tokens=9)[0]
    assert torch.equal(tensor[:, :77], text[0][0])
    expected = by_hand(given[0][0][0, 77:], text[0][0][0, [3, 4, 6]])
    assert torch.allclose(tensor[0, 77:].double(), expected, atol=1e-5 * float(given[0][0].abs().max()))
    assert ("attention_mask" in options) == (strength_type == "attn_bias")


def test_strength_0_gives_the_same_conditioning(sd15):
    joined = orthogonalize(encoded(sd15.clip, "a dog swimming"), visual_tokens=visual_tokens(sd15.clip))[0]
    kept = orthogonalize(joined, strength=0.0)[0]
    assert kept[0][0] is joined[0][0] and kept[0][1] == joined[0][1]


def test_all_tokens_where_nothing_is_known(sd15):
    foreign = [[random(1, 9, 64), {"pooled_output": None}]]
    tensor = orthogonalize(foreign, last_tokens=4, basis=ALL, words="")[0][0][0]
    assert torch.allclose(tensor[0, 5:].double(), by_hand(foreign[0][0][0, 5:], foreign[0][0][0, :5]), atol=1e-5)


def test_several_conditionings_have_their_own_bases(sd15):
    clip, visual = sd15.clip, visual_tokens(sd15.clip)
    one, two = encoded(clip, "a dog swimming"), encoded(clip, "a dog on a red sofa")
    conditioning, tokens, report, rank = orthogonalize([*one, *two], visual_tokens=visual)
    assert torch.equal(conditioning[0][0], orthogonalize(one, visual_tokens=visual)[0][0][0])
    assert torch.equal(conditioning[1][0], orthogonalize(two, visual_tokens=visual)[0][0][0])
    words = torch.cat([one[0][0][0, [3]], two[0][0][0, [3, 5, 6]]])
    assert torch.allclose(tokens.vectors[0].double(), by_hand(visual.vectors[0], words), atol=1e-5)
    assert rank == 3 and report.startswith("1. Rank 1 ") and "\n2. Rank 3 " in report


def test_pictures_and_rows(sd15):
    clip = sd15.clip
    one, two = encoded(clip, "a dog swimming"), encoded(clip, "a dog flying")
    rows = [[torch.cat([one[0][0], two[0][0]]), one[0][1]]]
    pictures = visual_tokens(clip, pictures=2)
    of_both = orthogonalize(rows, visual_tokens=pictures)[0][0][0]
    for row, text in enumerate((one, two)):
        alone = VisualTokens(pictures.vectors[row:row + 1], "a test")
        assert torch.allclose(of_both[row], orthogonalize(text, visual_tokens=alone)[0][0][0][0], atol=1e-6)
    assert orthogonalize(one, visual_tokens=pictures)[0][0][0].shape == (2, 81, 32)
    assert orthogonalize(rows, visual_tokens=visual_tokens(clip))[0][0][0].shape == (2, 81, 32)
    with pytest.raises(ValueError, match="visual tokens of 3 pictures but the conditioning has 2 rows"):
        orthogonalize(rows, visual_tokens=visual_tokens(clip, pictures=3))


def test_a_caption_as_basis(sd15):
    clip, visual = sd15.clip, visual_tokens(sd15.clip)
    caption = encoded(clip, "a dog standing on a rock")
    tensor = orthogonalize(encoded(clip, "a dog swimming"), visual_tokens=visual, basis_conditioning=caption)[0][0][0]
    assert torch.allclose(tensor[0, 77:].double(), by_hand(visual.vectors[0], caption[0][0][0, [3, 4, 6]]), atol=1e-5)


def test_long_prompts(sd15):
    prompt = "very " * 75 + "old dog swimming"
    conditioning, _, report, rank = orthogonalize(encoded(sd15.clip, prompt), visual_tokens=visual_tokens(sd15.clip))
    assert conditioning[0][0].shape == (1, 158, 32) and spans_in(conditioning[0][1])[VISUAL] == (154, 155, 156, 157)
    assert rank == 32 and "100.0% of the picture's tokens" in report, "77 words span all of a tiny encoder"


def test_all_words_excluded_passes_v_through(sd15):
    visual = visual_tokens(sd15.clip)
    for prompt in ("a dog", "", "the dog"):
        conditioning, tokens, report, rank = orthogonalize(encoded(sd15.clip, prompt), visual_tokens=visual)
        assert torch.equal(conditioning[0][0][:, 77:], visual.vectors) and torch.equal(tokens.vectors, visual.vectors)
        assert rank == 0 and report.startswith("No word is left to orthogonalize to")


def test_bad_input_is_one_sentence(sd15):
    clip, text = sd15.clip, encoded(sd15.clip, "a dog swimming")
    with pytest.raises(ValueError, match="of IP-Adapter have a width of 48 but the conditioning's is 32"):
        orthogonalize(text, visual_tokens=VisualTokens(random(1, 4, 48), "IP-Adapter"))
    with pytest.raises(ValueError, match="of ELITE are no part of the text yet.* conditioning of Encode Prompt with"):
        orthogonalize(text, visual_tokens=VisualTokens(random(1, 1, 32), "ELITE"))
    with pytest.raises(ValueError, match="holds no visual tokens; connect visual_tokens"):
        orthogonalize(text)
    with pytest.raises(ValueError, match="visual_tokens is connected and last_tokens is set"):
        orthogonalize(text, visual_tokens=visual_tokens(clip), last_tokens=4)
    with pytest.raises(ValueError, match="last_tokens is 77 but the conditioning has only 77 tokens"):
        orthogonalize(text, last_tokens=77)
    with pytest.raises(ValueError, match="does not say which of its tokens are words"):
        orthogonalize([[text[0][0], {}]], visual_tokens=visual_tokens(clip))
    with pytest.raises(ValueError, match="prompt has 154 tokens but the conditioning holds 77 of text.*basis to 'all'"):
        orthogonalize([[text[0][0], {}]], visual_tokens=visual_tokens(clip), clip=clip, prompt="dog " * 80)


def test_in_a_graph(execute, tiny_checkpoints):
    """The tokens that Conditioning (Concat) puts at the end stand for a picture's."""
    prompt = {"1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": tiny_checkpoints["sdxl"]}},
              "2": {"class_type": "PersonalizeEncodeWithSpans", "inputs": {
                  "clip": ["1", 1], "prompt": "a dog swimming", "words": ""}},
              "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a dog standing"}},
              "4": {"class_type": "ConditioningConcat", "inputs": {
                  "conditioning_to": ["2", 0], "conditioning_from": ["3", 0]}},
              "5": {"class_type": "PersonalizeOrthogonalize", "inputs": {
                  "conditioning": ["4", 0], "words": "dog", "strength": 1.0, "basis": WORDS, "last_tokens": 77}}}
    run = execute(prompt, get={"text": ["2", 0], "other": ["3", 0], "done": ["5", 0], "report": ["5", 2]})
    got = run.values
    text, other, (tensor, options) = got["text"][0][0], got["other"][0][0], got["done"][0]
    assert torch.equal(tensor[:, :77], text)
    assert torch.allclose(tensor[0, 77:].double(), by_hand(other[0], text[0, [3]]), atol=1e-4)
    assert torch.equal(options["pooled_output"], got["text"][0][1]["pooled_output"])
    lines = run.ui["5"]["text"][0].split("\n")
    assert " ".join(lines) == got["report"] and "Words: swimming." in got["report"]
    assert len(lines) > 1 and max(map(len, lines)) <= 50, "the node does not wrap lines"
