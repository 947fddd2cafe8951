"""What users give ViCo that is incomplete, ambiguous or twice: what it makes of it, or says."""
from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from personalize.nodes.families.find import unet_of
from personalize.nodes.papers.vico.blocks import ImageBlocks, layers_at
from personalize.nodes.papers.vico.files import metadata_of, read_vico
from personalize.nodes.papers.vico.nodes_train import PersonalizeTrainViCo
from personalize.nodes.papers.vico.parts import ImageAttentionPart, WithReferences
from personalize.nodes.papers.vico.prompts import END_OF_TEXT, place_of
from personalize.nodes.papers.vico.references import encode_reference
from personalize.nodes.papers.vico.terms import ReferenceAttentionLoss
from personalize.nodes.text.layout import END, LEARNED, START, Layout
from personalize.nodes.training.diffusion import DiffusionLoss
from personalize.nodes.training.nodes_parts import PersonalizeTrainEmbedding
from personalize.nodes.training.parts.embedding import EmbeddingPart
from personalize.nodes.training.plan import Settings
from personalize.nodes.training.recipe import TemplateRecipe
from support.layouts import of_tokens
from support.trainings import make_job, run, subject, train

pytestmark = pytest.mark.usefixtures("execute")  # the server object that runs report to
DOG, TOY = "<my-dog>", "<my-toy>"


# ------------------------------------------------------------------------------------------------ masks
def masked(masks: dict[int, torch.Tensor]):
    """The subject with masks (64, 64) on some of its three pictures."""
    whole = subject(3)
    return replace(whole, pictures=tuple(replace(each, masks=masks[i][None]) if i in masks else each
                                         for i, each in enumerate(whole.pictures)))


@pytest.mark.parametrize("part, target", [(ImageAttentionPart(given_masks=True), "end of text"),
                                          (ImageAttentionPart(variant="none"), "given mask")])
def test_pictures_without_a_mask_beside_one_with_count_whole(sd15, part, target):
    """In steps of one row the reference of some has none."""
    def losses(shown):
        terms = DiffusionLoss(), ReferenceAttentionLoss(0.3, target)
        trainer, _, _ = train(sd15, Settings(steps=6, batch_size=1), subjects=(shown,), parts=(EmbeddingPart(), part),
                              terms=terms, recipe=WithReferences(TemplateRecipe()))
        return [record["loss"] for record in trainer.history]

    corner, everything = torch.zeros(64, 64), torch.ones(64, 64)
    corner[8:40, 16:48] = 1
    assert losses(masked({1: corner})) == losses(masked({0: everything, 1: corner, 2: everything}))


# ------------------------------------------------------------------------------------------------ words of the prompt
def layout(*learned: str) -> Layout:
    """Of a prompt "a <first> <second> …"."""
    return replace(of_tokens([START, "a", *[LEARNED] * len(learned), END]),
                   spans=tuple((name, (2 + i,)) for i, name in enumerate(learned)))


@pytest.mark.parametrize("prompt, trained, others, expected", [
    ((DOG,), (DOG,), (), DOG),
    ((TOY,), (DOG,), (), TOY),       # the concept was given another placeholder
    ((DOG, TOY), (TOY,), (DOG,), TOY),
    ((DOG,), (TOY,), (DOG,), END_OF_TEXT),   # the first object's word is not the second's
    ((DOG,), (), (DOG,), END_OF_TEXT),
    ((DOG, TOY), (), (DOG,), TOY)])
def test_each_object_has_a_word_of_its_own(prompt, trained, others, expected, caplog):
    name, positions = place_of(layout(*prompt), "", trained, others)
    assert name == expected
    assert positions == ((2 + len(prompt),) if expected == END_OF_TEXT else (2 + prompt.index(expected),))
    assert ("does not hold" in caplog.text) == (expected == END_OF_TEXT)


def test_words_of_one_object_are_looked_at_together():
    assert place_of(layout(DOG, TOY), f"{TOY}, a, missing", (DOG,)) == (f"{TOY}, a", (3, 1))


# ------------------------------------------------------------------------------------------------ chains
def test_parts_that_train_the_same_are_one_too_many(sd15):
    vico = PersonalizeTrainViCo.execute(1e-5, 5e-3, "decoder", "Eq. 5").args[0]
    for rate in (5e-3, 0.0):
        with pytest.raises(ValueError, match="previous holds Train ViCo already, and one set of image blocks serves"):
            PersonalizeTrainViCo.execute(1e-5, rate, "decoder", "Eq. 5", vico)
    parts = PersonalizeTrainEmbedding.execute(5e-3, 0, 0, vico).args[0]
    with pytest.raises(ValueError, match=f"Two parts at trainable train the vectors of {DOG}; keep one"):
        run(make_job(sd15, "twice", parts=parts, recipe=WithReferences(TemplateRecipe())))


# ------------------------------------------------------------------------------------------------ files
@pytest.mark.parametrize("about, message", [
    ({"variant": "tenfold"}, "mine.safetensors was trained with the object mask 'tenfold', which this version"),
    ({"variant": None}, "mine.safetensors is damaged or no ViCo file"),
    ({"words": "<a>, <b>"}, "mine.safetensors is damaged or no ViCo file"),
    ({"words": json.dumps(1)}, "mine.safetensors is damaged or no ViCo file"),
    ({"size": "large"}, "mine.safetensors is damaged or no ViCo file")])
def test_a_file_that_says_odd_things_of_itself(tmp_path, sd15, about, message):
    blocks = ImageBlocks(sd15.model, layers_at(unet_of(sd15.model).layers, "decoder"))
    blocks.draw(torch.Generator().manual_seed(1))
    said = {**metadata_of("paper", (DOG,), 64, sd15.model), **about}
    save_file({name: p.detach() for name, p in blocks.named_tensors()}, tmp_path / "mine.safetensors",
              {name: value for name, value in said.items() if value is not None})
    with pytest.raises(ValueError, match=message):
        read_vico(tmp_path / "mine.safetensors")


def test_a_video_at_image_is_refused_before_it_is_encoded():
    with pytest.raises(ValueError, match="^There are 100 reference pictures but Apply ViCo looks at 16 at most, .*; "
                                         "connect fewer"):
        encode_reference(None, None, torch.zeros(100, 8, 8, 3), "", None, 64, "crop")
