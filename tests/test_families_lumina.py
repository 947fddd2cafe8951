"""Z-Image through the same loop as the U-Nets: its words, adapters and attention."""
from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from personalize.nodes.families import lumina
from personalize.nodes.families.find import unet_of
from personalize.nodes.papers.core.terms import ContextAttentionLoss, ContextEmbeddingLoss
from personalize.nodes.papers.core.test_time import NoisedScene
from personalize.nodes.recording.pass_recorder import AttentionRecorder, Wanted
from personalize.nodes.text.encode import encode
from personalize.nodes.text.tokens import PromptTokenizer
from personalize.nodes.training.assembly import open_training
from personalize.nodes.training.dataset import Dataset, PictureLatents
from personalize.nodes.training.diffusion import DiffusionLoss
from personalize.nodes.training.parts.embedding import EmbeddingPart
from personalize.nodes.training.parts.weights import AdapterPart, UNetPart
from personalize.nodes.training.passes import denoise
from personalize.nodes.training.plan import Plan, Settings
from personalize.nodes.training.recipe import TemplateRecipe
from personalize.nodes.training.session import training_session
from support.trainings import subject

SCENE = NoisedScene(torch.randn(3, 16, 8, 8, generator=torch.Generator().manual_seed(0)))


@pytest.fixture
def loaded(z_image):
    return z_image[:2]


def plan(loaded, *parts, terms=(DiffusionLoss(),), **settings):
    return Plan(*loaded, None, (subject(1),), parts, terms, TemplateRecipe(),
                Settings(**{"steps": 4, "batch_size": 2, "weight_decay": 0.0, **settings}))


def losses(made):
    with open_training(made, latents=SCENE) as trainer:
        trainer.run(lambda trainer, record: True)
        return [record["loss"] for record in trainer.history]


class SameNoise(Dataset):
    """A latent at the noise of the first step."""

    def __init__(self):
        super().__init__([[PictureLatents(latent[None], None) for latent in SCENE.latents[:1]]])

    def noised(self, rows, levels, seed, step, stream, device):
        return super().noised(rows, levels, seed, 1, stream, device)


@pytest.mark.parametrize("part", [EmbeddingPart(lr=0.02), AdapterPart(rank=2, alpha=2.0, lr=3e-3)],
                         ids=["embedding", "adapter"])
def test_learns_with_every_seed_and_not_at_rate_0(loaded, part):
    for seed in range(5):
        with open_training(plan(loaded, part, steps=4, seed=seed), latents=SameNoise()) as trainer:
            trainer.run(lambda trainer, record: True)
            found = [record["loss"] for record in trainer.history]
            assert found[-1] < found[0] - 0.005
    with open_training(plan(loaded, replace(part, lr=0.0)), latents=SameNoise()) as trainer:
        before = {name: value.clone() for name, value in trainer.state().tensors.items() if name.startswith("part.")}
        trainer.run(lambda trainer, record: True)
        assert all(torch.equal(trainer.state().tensors[name], value) for name, value in before.items())


def test_queries_are_the_pictures_and_keys_those_of_the_whole_sequence(loaded):
    """With the values, they give what the layer's attention gives the picture's rows; the maps are a plain softmax."""
    found, values, outputs = [], [], []
    with training_session(*loaded) as session, torch.no_grad():
        session.load()
        layers, blocks = session.family.layers, session.family.denoiser.layers
        prompt = encode(session.clip, [PromptTokenizer(session.clip, {})("a photo of a red dog")], [{}])
        tokens = prompt.cond.shape[1]
        hooks = [hook for block in blocks for hook in (
            block.attention.qkv.register_forward_hook(lambda _, inputs, output: values.append(output.chunk(3, -1)[2])),
            block.attention.out.register_forward_pre_hook(lambda _, inputs: outputs.append(inputs[0])))]
        with AttentionRecorder(session.family, [Wanted(layers, "pixels"), Wanted(layers)]) as recorder, \
                session.family.watch(layers, lambda *seen: found.append(seen)):
            denoise(session, torch.randn(1, 16, 12, 10), torch.tensor([0.7]), prompt, None)
        for hook in hooks:
            hook.remove()
    assert [seen[0] for seen in found] == list(layers) and tokens % 32
    rows = zip(found, values, outputs, *recorder.maps, strict=True)
    for (layer, (query, key, text), _), value, output, pixels, mean in rows:
        query, key, value = (each.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for each in (query, key, value))
        weights = torch.softmax(query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5, -1)
        expected = (weights @ value).transpose(1, 2).flatten(2)
        assert text == tokens and expected.shape[1] == 6 * 5
        torch.testing.assert_close(output[:, 32:32 + 30], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(pixels, weights.mean(1)[..., :tokens], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(mean, weights.mean((1, 2))[:, :tokens], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("estimate", [False, True])
def test_core_losses(loaded, estimate):
    templates = ("a photo of {} in the snow", "a {} on the sand")
    terms = (DiffusionLoss(), ContextEmbeddingLoss(templates, 1.0, "paper"),
             ContextAttentionLoss(templates, 1.0, "paper", estimate))
    made = plan(loaded, EmbeddingPart(lr=0.1), terms=terms)
    if estimate:
        with pytest.raises(ValueError, match="keys of a prompt come about together with.* attention to exact"):
            losses(made)
        return
    with open_training(made, latents=SCENE) as trainer:
        trainer.run(lambda trainer, record: True)
        assert all(norm > 0 for norm in trainer.history[0]["norms"].values())
        assert set(trainer.history[0]["parts"]) == {term.name for term in terms}


def test_what_acts_on_a_u_net_refuses_by_name(loaded):
    with pytest.raises(ValueError, match="The model Lumina2 is no U-Net with text cross-attention"):
        unet_of(loaded[0])


def test_checkpointing_changes_nothing(loaded):
    assert losses(plan(loaded, EmbeddingPart(lr=0.1), checkpointing=True)) == pytest.approx(
        losses(plan(loaded, EmbeddingPart(lr=0.1))), rel=1e-4)


def test_an_adapter_that_finds_no_layer_says_so(loaded, monkeypatch):
    monkeypatch.setattr(lumina, "_ATTENTION", ("attn.qkv",))
    with pytest.raises(ValueError, match="No layer was found that an adapter may change"):
        losses(plan(loaded, AdapterPart()))


def test_all_weights_are_trained_where_memory_allows(loaded):
    """By the node that is called after the U-Net."""
    found, still = (losses(plan(loaded, UNetPart(lr=rate), steps=2)) for rate in (1e-4, 0.0))
    assert found[0] == still[0] and found[1] != still[1]
