"""The text encoder learns which picture a caption is of."""
from __future__ import annotations

import math

import pytest
import torch

from miniature import contrastive
from miniature.contrastive import Matching, caption_outputs, contrastive_loss, draw_captioned
from miniature.latents import Corpus
from miniature.network import TextEncoder, new_networks


def test_the_loss_is_the_mean_surprise_of_both_directions():
    draw = torch.Generator().manual_seed(0)
    captions, pictures = (torch.randn(5, 7, generator=draw, dtype=torch.float64) for _ in range(2))
    surprises = []
    for one, other in ((captions, pictures), (pictures, captions)):
        for row in range(5):
            scores = [3.0 * float(one[row] @ other[i] / one[row].norm() / other[i].norm()) for i in range(5)]
            surprises.append(math.log(sum(map(math.exp, scores))) - scores[row])
    found = contrastive_loss(captions, pictures, torch.tensor(3.0))
    assert float(found) == pytest.approx(sum(surprises) / len(surprises), rel=1e-9)


def test_outputs_are_those_at_the_end_or_at_a_word(monkeypatch):
    text = new_networks(2)["text"]
    tokens = text.tokens(["a photo of a dog on the moon", "a red bird"] * 100)
    with torch.no_grad():
        whole, ends = text(tokens), text.ends(tokens).int().argmax(1)
        torch.manual_seed(0)
        found = caption_outputs(text, tokens)
    places = [[torch.allclose(whole[row, place], found[row], atol=1e-5) for place in range(77)].index(True)
              for row in range(len(tokens))]
    at_end = [place == end for place, end in zip(places, ends.tolist())]
    assert all(2 <= place <= end for place, end in zip(places, ends.tolist()))
    assert sum(at_end) / len(at_end) == pytest.approx(1 - contrastive.CUT, abs=0.12)
    assert len(set(places)) > 5
    monkeypatch.setattr(contrastive, "CUT", 0.0)
    with torch.no_grad():
        torch.testing.assert_close(caption_outputs(text, tokens), whole[torch.arange(len(tokens)), ends])


@pytest.mark.parametrize("shuffled", [False, True])
def test_captions_of_pictures_are_told_apart(shuffled):
    """Of sixteen scenes: the loss falls far below chance, and not where captions belong to other pictures each time."""
    text, chance = new_networks(1)["text"], math.log(16)
    last = _learn(text, _sixteen_scenes(text), shuffled)
    assert last > 0.8 * chance if shuffled else last < 0.6 * chance


def _sixteen_scenes(text: TextEncoder) -> Corpus:
    kinds, places = ("dog", "cat", "bird", "fish"), ("on the moon", "in the snow", "at night", "in the city")
    captions = [f"a {kind} {place}" for kind in kinds for place in places for _ in range(5)]
    tokens = text.tokens(captions).view(16, 5, 77).short()
    latents = torch.randn(16, 16, 16, 16, generator=torch.Generator().manual_seed(3))
    return Corpus(latents, torch.zeros(0), torch.zeros(0), tokens, 1.0, torch.zeros(16, 1, 16, 16))


def _learn(text: TextEncoder, corpus: Corpus, shuffled: bool) -> float:
    """The mean loss of the last ten of eighty steps."""
    torch.manual_seed(0)
    matching, losses = Matching(), []
    optimizer = torch.optim.AdamW([*text.parameters(), *matching.parameters()], lr=1e-3)
    for _ in range(80):
        latents, tokens = draw_captioned(corpus, 16)
        loss = matching(text, latents[torch.randperm(16)] if shuffled else latents, tokens)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[-10:]) / 10
