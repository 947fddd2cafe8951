"""Attention recorded while Z-Image samples, where text and picture share a sequence, against a plain softmax."""
from __future__ import annotations

import pytest
import torch

from personalize.nodes.text.layout import layout_in
from personalize.nodes.text.nodes_prompts import PersonalizeEncodeWithSpans
from support.recorded import recording
from support.sampling import encoded, sample
from tiny.z_image import checkpoint

PROMPT = "a photo of a dog and a red hat"
SAME_LENGTH = "a photo of a cat and a red boy"
FILLED = 32  # rows that a text is filled up to, and a picture
OVERRIDE = "optimized_attention_override"


@pytest.fixture(scope="module")
def loaded():
    return checkpoint()


def with_words(clip, text=PROMPT, words="dog\nred hat"):
    with torch.inference_mode():
        return PersonalizeEncodeWithSpans.execute(clip, text, words)[0]


def draw(model, positive, negative, size=(12, 10), batch=1, **more):
    return sample(model, positive, negative, latent=torch.zeros(batch, 16, *size), **more)


def seen_by_another(model, change=lambda out: out):
    """(MODEL, queries and keys of the positive prompt's rows in each joint layer, with the number of prompts in the
    call), by an override as other packs set it."""
    seen = []

    def override(function, query, key, *args, **kwargs):
        options = kwargs["transformer_options"]
        sides = options["cond_or_uncond"]
        if options.get("block_type") == "double" and 0 in sides:
            query_rows, key_rows = (each.chunk(len(sides))[sides.index(0)].double() for each in (query, key))
            seen.append((query_rows, key_rows, len(sides)))
        return change(function(query, key, *args, **kwargs))

    model = model.clone()
    model.model_options["transformer_options"][OVERRIDE] = override
    return model, seen


def plain_maps(query, key, positions, grid):
    """(rows, h, w): softmax over the whole sequence, mean over heads, of the first pictures' rows after the text."""
    weights = torch.softmax(query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5, -1).mean(1)
    pixels = weights[:, FILLED:FILLED + grid[0] * grid[1]]
    return pixels[..., positions].sum(-1).unflatten(1, grid)


def close(found, expected):
    return torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-7)


# ------------------------------------------------------------------------------------------------ values
@pytest.mark.parametrize("negative, together", [("", 1), (SAME_LENGTH, 2)], ids=["prompts run apart", "together"])
@pytest.mark.parametrize("size, grid", [((12, 10), (6, 5)), ((13, 9), (7, 5))], ids=["even", "odd"])
def test_maps_are_a_plain_softmax(loaded, negative, together, size, grid):
    model, clip = loaded
    positive, negative = with_words(clip), encoded(clip, negative)
    layout = layout_in(positive[0][1])
    other, seen = seen_by_another(model)
    plain = draw(other, positive, negative, size, batch=2, steps=1)
    assert [sides for *_, sides in seen] == [together] * 2 and layout.length < FILLED
    recorded, record = recording(model, every_step=False)
    assert torch.equal(draw(recorded, positive, negative, size, batch=2, steps=1), plain)
    run = record.sampling(plain)
    assert (run.words, run.size, run.factor) == (("dog", "red hat"), size, 8)
    for layer, (query, key, _) in zip(run.layers, seen, strict=True):
        for word in run.words:
            found = run.map(word, layer)
            assert found.shape == (2, *grid) and not close(found[:1], found[1:].double())
            assert close(found, plain_maps(query, key, layout.find(word), grid))
    assert torch.equal(draw(model, positive, negative, size, batch=2, steps=1), plain)


def test_exchanged_words_exchange_their_maps(loaded):
    """Of two words without an order, up to what their places and neighbours do to them."""
    model, clip = loaded
    maps = []
    for text in ("a dog, a hat", "a hat, a dog"):
        recorded, record = recording(model, every_step=False)
        draw(recorded, with_words(clip, text, "dog\nhat"), encoded(clip, ""), (16, 16), steps=1)
        run = record.current
        maps.append({word: run.map(word, run.layers[0]).flatten() for word in ("dog", "hat")})
    for word in maps[0]:
        likeness = {other: float(torch.corrcoef(torch.stack([maps[0][word], maps[1][other]]))[0, 1])
                    for other in maps[1]}
        assert max(likeness, key=likeness.get) == word
