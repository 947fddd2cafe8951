"""Training image blocks: against both streams written out, beside other parts, and what is missing."""
from __future__ import annotations

import copy
from dataclasses import replace

import comfy.sd
import folder_paths
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from personalize.nodes.families.find import unet_of
from personalize.nodes.papers.vico.apply import with_references
from personalize.nodes.papers.vico.blocks import ImageBlocks, layers_at
from personalize.nodes.papers.vico.nodes_train import PersonalizeTrainViCo
from personalize.nodes.papers.vico.parts import ImageAttentionPart, WithReferences
from personalize.nodes.papers.vico.references import Reference, Use
from personalize.nodes.papers.vico.terms import ReferenceAttentionLoss
from personalize.nodes.recording.record import Record
from personalize.nodes.training.diffusion import DiffusionLoss
from personalize.nodes.training.loop import Trainer
from personalize.nodes.training.parts.embedding import EmbeddingPart
from personalize.nodes.training.parts.weights import AdapterPart
from personalize.nodes.training.plan import Settings
from personalize.nodes.training.recipe import TemplateRecipe
from support import vico_by_hand
from support.inprocess import dynamic_vram
from support.trainings import CORE, gradients, in_place_of_a_step, make_job, run, subject, train
from support.vico_training import (
    CLOSE,
    RECIPE,
    TEMPLATES,
    TWO,
    WEIGHT,
    ByHand,
    close,
    copied,
    method,
    same_gradients,
    with_masks,
)

pytestmark = pytest.mark.usefixtures("execute")  # the server object that runs report to


@pytest.mark.parametrize("variant", ["paper", "released", "none"])
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_loss_and_gradients_equal_both_streams_by_hand(exact, kind, variant):
    compare(exact(kind), variant)


@pytest.mark.parametrize("kind", ["sd21", "sdxl_zsnr"])
def test_loss_and_gradients_equal_both_streams_by_hand_where_velocity_is_predicted(exact, kind):
    compare(exact(kind), "paper")


def compare(checkpoint, variant: str) -> None:
    seen = []

    def action(trainer, batch):
        values, _ = trainer._micro_batches(batch, measured=False)
        hand = ByHand(trainer, batch, variant)
        assert values["diffusion"] == pytest.approx(hand.diffusion.item(), rel=CLOSE)
        assert values["reference attention"] == pytest.approx(hand.regularisation.item(), rel=CLOSE)
        same_gradients(trainer, hand)
        seen.append(batch)

    with in_place_of_a_step(action):
        train(checkpoint, Settings(steps=1, batch_size=4), **method(variant))
    batch, = seen
    assert {row.subject for row in batch.rows["subject"]} == {0, 1}
    assert all(row.picture != reference.picture and row.subject == reference.subject
               for row, reference in zip(batch.rows["subject"], batch.rows["reference"]))


@pytest.mark.parametrize("settings", [dict(micro_batch=1), dict(checkpointing=True)],
                         ids=["micro-batches", "recomputed"])
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_memory_settings_do_not_change_the_gradient(exact, kind, settings):
    checkpoint = exact(kind)
    how = method(terms=(DiffusionLoss(), ReferenceAttentionLoss(WEIGHT), *CORE))
    plain, saving = gradients(checkpoint, how), gradients(checkpoint, how, **settings)
    close(saving, plain)


class Rotated:
    """A copy of the U-Net in which an OFT's weights are R W with R = (I + Q)⁻¹ (I − Q), Q = B − Bᵀ (Cayley).

    blocks: own copies of the OFT's B, which get their gradient from `backward` once the copy's weights have theirs.
    """

    def __init__(self, unet, adapter):
        self.unet, self.blocks, self.weights = copy.deepcopy(unet), {}, []
        for key, (prefix, module) in adapter.changes.items():
            turned = self.unet.get_submodule(key.removeprefix("diffusion_model.").removesuffix(".weight"))
            self.blocks[prefix] = blocks = copied(module.oft_blocks)
            wide = blocks.to(turned.weight)
            skew, eye = wide - wide.mT, torch.eye(wide.shape[-1]).to(wide)
            weight = torch.block_diag(*torch.linalg.solve(eye + skew, eye - skew)) @ turned.weight
            turned.weight = nn.Parameter(weight.detach())
            self.weights.append((weight, turned.weight))

    def backward(self) -> None:
        used = [(weight, turned.grad) for weight, turned in self.weights if turned.grad is not None]
        torch.autograd.backward(*map(list, zip(*used)))


@torch.no_grad()
def randomise(adapter) -> None:
    draw = torch.Generator().manual_seed(4)
    for p in adapter.groups[0].params:
        p.copy_(0.3 * torch.randn(p.shape, generator=draw))


def test_oft_turns_both_streams_and_learns_from_both(exact):
    """Appendix I: gradients of image blocks, embedding and OFT against both streams with weights R W."""
    compared = []

    def action(trainer, batch):
        adapter = trainer.parts[2]
        randomise(adapter)
        values, _ = trainer._micro_batches(batch, measured=False)
        rotated = Rotated(unet_of(trainer.session.model).denoiser, adapter)
        hand = ByHand(trainer, batch, "paper", unet=rotated.unet)
        rotated.backward()
        assert values["diffusion"] == pytest.approx(hand.diffusion.item(), rel=CLOSE)
        assert values["reference attention"] == pytest.approx(hand.regularisation.item(), rel=CLOSE)
        same_gradients(trainer, hand)
        for prefix, module in adapter.changes.values():
            found, expected = module.oft_blocks.grad, rotated.blocks[prefix].grad
            if expected.any():
                close(found, expected, 1e-4)  # the adapter itself computes in float32
                compared.append(prefix)
            else:  # a single pixel attends to itself, whatever its query and key are
                assert found.abs().max() < 1e-8 and prefix.endswith(("to_q", "to_k"))

    with in_place_of_a_step(action):
        train(exact("sd15"), Settings(steps=1, batch_size=4), **method(
            parts=(*method()["parts"], AdapterPart("OFT", rank=8, alpha=0.0))))
    assert len(compared) > 100


def test_resume_is_exact_and_beside_oft_all_parts_learn(sd15):
    """Appendix I: image blocks, embedding and OFT together."""
    parts = (*method()["parts"], AdapterPart("OFT", rank=8, alpha=0.0, lr=1e-3))
    how, settings = method(parts=parts), Settings(steps=4, batch_size=2)
    whole, _, end = train(sd15, settings, **how)
    _first, _, state = train(sd15, settings, each_step=lambda trainer, record: record["step"] < 2, **how)
    second, _, resumed = train(sd15, settings, resume=state, **how)
    assert [r["loss"] for r in second.history] == [r["loss"] for r in whole.history]
    assert all(torch.equal(resumed.tensors[name], value) for name, value in end.tensors.items())
    for part in range(3):
        names = [name for name in end.tensors if name.startswith(f"part.{part}.")]
        assert any(not torch.equal(end.tensors[name], state.tensors[name]) for name in names)


def test_dynamic_vram_changes_no_training(sd15, tiny_checkpoints):
    """Image blocks, embedding and LoRA together, with a checkpoint that was itself loaded so."""
    how = method(parts=(*method()["parts"], AdapterPart("LoRA", rank=2, alpha=2.0, lr=1e-3)))
    plain, _, end = train(sd15, Settings(steps=2, batch_size=2), **how)
    with dynamic_vram():
        weights = load_file(folder_paths.get_full_path("checkpoints", tiny_checkpoints["sd15"]))
        with torch.inference_mode():
            loaded = comfy.sd.load_state_dict_guess_config(weights)[:3]
        dynamic, _, found = train(loaded, Settings(steps=2, batch_size=2), **how)
    assert [r["loss"] for r in dynamic.history] == [r["loss"] for r in plain.history]
    found, end = found.tensors, end.tensors
    assert found.keys() == end.keys() and all(torch.equal(found[name], end[name]) for name in end)
    assert sum("image_cross_attention" in name for name in end) >= 80


def first_step(checkpoint, precision: str, **how):
    """Losses and gradients by group of one step, the trainer after it, and the files saved then."""
    found = []

    def action(trainer, batch):
        values, _ = trainer._micro_batches(batch, measured=False)
        groups = [group for part in trainer.parts for group in part.groups]
        found.append((values, {g.name: torch.cat([p.grad.flatten() for p in g.params]) for g in groups}, trainer))
        trainer.optimizer.step()

    how = {"subjects": TWO[:1], "recipe": RECIPE, "settings": Settings(steps=1, batch_size=4), **how}
    with in_place_of_a_step(action):
        saved, = run(make_job(checkpoint, "vico-precision", precision=precision, **how)).report["saved"]
    return *found[0], saved


def test_bfloat16_loses_little_more_than_in_textual_inversion_and_trains_float32(sdxl):
    """Two runs of the U-Net follow each other, so up to four times the error; a mask's patches may change sides too."""
    ways = {"word alone": {}, "none": method("none"), "paper": method()}
    lost = {}
    for name, how in ways.items():
        how = {key: value for key, value in how.items() if key in ("parts", "terms")}
        exact, half = (first_step(sdxl, precision, **how) for precision in ("fp32", "bf16"))
        for term, value in exact[0].items():
            assert half[0][term] == pytest.approx(value, rel=1e-3 if term == "diffusion" else 1e-2)
        lost[name] = [float((half[1][group] - gradient).norm() / gradient.norm())
                      for group, gradient in exact[1].items()]
    assert len(lost["none"]) == 2 and max(lost["none"]) < 4 * lost["word alone"][0] < 0.2
    assert max(lost["paper"]) < 0.3
    trainer, saved = half[2:]
    blocks, = (load_file(path) for path in saved["part_files"])
    for name, p in trainer.parts[1].blocks.named_tensors():
        assert p.dtype == torch.float32
        assert {t.dtype for t in trainer.optimizer.state[p].values()} == {torch.float32}
        assert torch.equal(blocks[name], p.half())
    assert {t.dtype for t in load_file(saved["files"][0]).values()} == {torch.float32}


def test_training_learns(sd15, monkeypatch):
    """The same batch again and again, noise and all: the blocks alone bring the loss down."""
    batch = Trainer.batch
    monkeypatch.setattr(Trainer, "batch", lambda trainer, step: replace(batch(trainer, 1), step=step))
    trainer, _, _ = train(sd15, Settings(steps=12, batch_size=2), **method(parts=(ImageAttentionPart(2e-3),)))
    losses = [record["loss"] for record in trainer.history]
    assert losses[-1] < 0.97 * losses[0]


def shown_masks(batch, patches: int) -> Tensor:
    """What the masks of a batch's references cover of each patch."""
    side = round(patches ** 0.5)
    masks = [batch.subjects[row.subject].pictures[row.picture].masks[row.variant] for row in batch.rows["reference"]]
    return F.adaptive_avg_pool2d(torch.stack(masks)[:, None], (side, side)).flatten(1)


def test_given_masks_take_the_place_of_automatic_ones(exact):
    masked = tuple(map(with_masks, TWO))
    part = ImageAttentionPart(given_masks=True)
    compared = []

    def action(trainer, batch):
        values, _ = trainer._micro_batches(batch, measured=False)
        given = ByHand(trainer, batch, "paper", lambda maps: shown_masks(batch, maps.shape[-1]))
        assert values["diffusion"] == pytest.approx(given.diffusion.item(), rel=CLOSE)
        same_gradients(trainer, given)
        automatic = ByHand(trainer, batch, "paper")
        compared.append(values["diffusion"] != pytest.approx(automatic.diffusion.item(), rel=CLOSE))

    with in_place_of_a_step(action):
        train(exact("sd15"), Settings(steps=1, batch_size=4), **method(parts=(EmbeddingPart(), part), subjects=masked))
    assert compared == [True]
    with pytest.raises(ValueError, match="Masks of the pictures are asked for, but no picture"):
        train(exact("sd15"), Settings(steps=1, batch_size=2), **method(parts=(EmbeddingPart(), part)))


@pytest.mark.parametrize("target", ["object mask", "given mask"])
def test_alignment_in_place_of_masking(exact, target):
    """Fig. 9: the map of the word is drawn to a mask, and the image blocks see all of the reference."""
    subjects, compared = tuple(map(with_masks, TWO)), []

    def action(trainer, batch):
        values, _ = trainer._micro_batches(batch, measured=False)
        goal = vico_by_hand.otsu_mask if target == "object mask" else lambda word: shown_masks(batch, word.shape[-1])
        hand = ByHand(trainer, batch, "none", goal=goal)
        assert values["reference attention"] == pytest.approx(hand.regularisation.item(), rel=CLOSE)
        assert values["diffusion"] == pytest.approx(hand.diffusion.item(), rel=CLOSE)
        same_gradients(trainer, hand, 1e-4)  # flat maps: gradients of the map and of its largest value nearly cancel
        compared.append(values["reference attention"])

    with in_place_of_a_step(action):
        train(exact("sd15"), Settings(steps=1, batch_size=4), **method(
            "none", terms=(DiffusionLoss(), ReferenceAttentionLoss(WEIGHT, target)), subjects=subjects))
    assert compared[0] > 0


def test_single_picture_is_its_own_reference_and_a_prompt_may_lack_the_word(sd15):
    recipe = WithReferences(TemplateRecipe(("a photo of nothing",)))
    trainer, _, _ = train(sd15, Settings(steps=2, batch_size=3), **method(subjects=(subject(1),), recipe=recipe))
    rows = recipe.rows((subject(1),), 1, 3, 0)
    assert [row.picture for row in rows["reference"]] == [0, 0, 0]
    assert all(record["loss"] == record["loss"] for record in trainer.history)


def test_references_are_drawn_evenly_from_the_others():
    rows = [WithReferences(TemplateRecipe()).rows((subject(4),), step, 4, 0) for step in range(1, 101)]
    pairs = [(row.picture, reference.picture) for each in rows
             for row, reference in zip(each["subject"], each["reference"])]
    counts = [pairs.count((i, j)) for i in range(4) for j in range(4) if i != j]
    assert sum(counts) == 400 and min(counts) > 15 and max(counts) < 55


# ------------------------------------------------------------------------------------------------ bad input
@pytest.mark.parametrize("how, message", [
    (method(recipe=TemplateRecipe(TEMPLATES)), "End-of-Text Regularisation looks at reference pictures; connect"),
    (method(recipe=TemplateRecipe(TEMPLATES), terms=(DiffusionLoss(),)), "Train ViCo needs a reference picture beside"),
    (method(parts=(EmbeddingPart(),)), "no part that is trained reads a reference there; connect Train ViCo"),
    (method(parts=(EmbeddingPart(), ImageAttentionPart(placement="encoder"))), "with the same placement as the loss")])
def test_what_is_missing_is_said(sd15, how, message):
    with pytest.raises(ValueError, match=message):
        train(sd15, Settings(steps=1, batch_size=2), **how)


def test_model_that_reads_a_reference_is_not_trained_on(sd15):
    blocks = ImageBlocks(sd15.model, layers_at(unet_of(sd15.model).layers, "decoder"))
    reading = with_references(sd15.model, blocks, (), [Reference(torch.zeros(1, 4, 8, 8))], Use("paper"), Record("A"))
    with pytest.raises(ValueError, match="The MODEL for Train already reads a reference; connect the model from"):
        train(sd15._replace(model=reading), Settings(steps=1, batch_size=2), **method())


def test_train_embedding_and_train_vico_are_one_too_many():
    with pytest.raises(ValueError, match="previous holds Train Embedding, but Train ViCo trains the word's vectors"):
        PersonalizeTrainViCo.execute(1e-5, 5e-3, "decoder", "Eq. 5", (EmbeddingPart(),))
    chain = PersonalizeTrainViCo.execute(1e-5, 0.0, "decoder", "as released", (EmbeddingPart(),)).args[0]
    assert chain == (EmbeddingPart(), ImageAttentionPart(1e-5, "decoder", "released"))
