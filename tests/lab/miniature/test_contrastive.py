"""The text encoder learns which picture a caption is of; a U-Net that is given another one draws nearly the same."""
from __future__ import annotations

import math

import pytest
import torch

from miniature import contrastive
from miniature.autoencoder import WEIGHTS
from miniature.contrastive import caption_outputs, contrastive_loss, learn_pictures
from miniature.deadline import Deadline
from miniature.latents import Corpus
from miniature.network import new_networks
from miniature.text_start import give_text


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


def test_captions_of_pictures_are_told_apart_and_the_encoder_is_then_frozen(monkeypatch, tmp_path):
    """Of sixteen scenes: the loss falls far below chance, and not where captions belong to other pictures each time."""
    monkeypatch.setattr(contrastive, "STEPS", 80)
    monkeypatch.setattr(contrastive, "BATCH", 16)
    text = new_networks(1)["text"]
    kinds = ("dog", "cat", "bird", "fish")
    captions = [[f"a {kind} {place}"] * 5 for kind in kinds for place in ("on the moon", "in the snow", "at night",
                                                                          "in the city")]
    tokens = text.tokens([one for of_scene in captions for one in of_scene]).view(16, 5, 77).short()
    latents = torch.randn(16, 16, 16, 16, generator=torch.Generator().manual_seed(3))
    corpus = Corpus(latents, torch.zeros(0), torch.zeros(0), tokens, 1.0, torch.zeros(16, 1, 16, 16))
    said = []
    deadline = Deadline(5)
    deadline.log = said.append
    torch.manual_seed(0)
    assert learn_pictures(text, corpus, tmp_path / "text.pt", deadline)
    assert not any(parameter.requires_grad for parameter in text.parameters())
    again = new_networks(2)["text"]
    assert learn_pictures(again, corpus, tmp_path / "text.pt", Deadline(0))
    assert all(torch.equal(a, b) for a, b in zip(text.state_dict().values(), again.state_dict().values()))
    assert not learn_pictures(new_networks(2)["text"], corpus, tmp_path / "none.pt", Deadline(0))


@torch.no_grad()
def test_a_given_text_encoder_says_nearly_what_the_old_one_said():
    from safetensors.torch import load_file

    from miniature.checkpoint import load_networks

    networks, other = new_networks(), new_networks(4)["text"]
    load_networks(networks, load_file(WEIGHTS.with_name("miniature.safetensors")))
    old, layer = networks["text"], networks["unet"].get_submodule("input_blocks.5.1.transformer_blocks.0.attn2")
    prompts = ["a photo of a red dog wearing a hat", "a drawing of a fish in the city"]
    tokens = old.tokens(prompts)
    before, pictures = layer.to_k(old(tokens)), torch.rand(2, 3, 64, 64)
    shown = layer.to_k(networks["picture"](pictures))
    other.load_state_dict(old.state_dict())
    give_text(networks, other)
    words = ~old.ends(tokens)
    torch.testing.assert_close(layer.to_k(other(tokens))[words], before[words], rtol=1e-2, atol=1e-2)
    pictured = layer.to_k(networks["picture"](pictures))  # what no word says is not in the map, and is learned anew
    assert (pictured - shown).norm() < 0.5 * shown.norm()
