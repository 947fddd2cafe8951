"""Training image blocks: against both streams written out, beside other parts, and what stays as it was."""
from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import comfy.sd
import folder_paths
import nodes
import pytest
import torch
from comfy.model_sampling import V_PREDICTION
from safetensors.torch import load_file
from test_interfaces import CORE, gradients, in_place_of_a_step
from test_training_job import make_job, run
from test_training_loop import subject, train
from torch import Tensor, nn
from torch.nn import functional as F

from personalize.nodes.attention.layers import attention_layers, unet_of
from personalize.nodes.attention.record import Record
from personalize.nodes.text.apply import clip_with_vectors
from personalize.nodes.text.encode import encode
from personalize.nodes.text.nodes_concept import PersonalizeLoadConcept, PersonalizeSaveConcept
from personalize.nodes.text.nodes_prompts import PersonalizeEncodeWithSpans
from personalize.nodes.text.spans import SPANS, TOKENS
from personalize.nodes.training import job as job_module
from personalize.nodes.training.diffusion import DiffusionLoss
from personalize.nodes.training.interfaces import Row
from personalize.nodes.training.loop import Settings, Trainer
from personalize.nodes.training.nodes_parts import TrainAdapter
from personalize.nodes.training.parts.embedding import EmbeddingPart
from personalize.nodes.training.parts.weights import AdapterPart
from personalize.nodes.training.recipe import TemplateRecipe
from personalize.nodes.vico.apply import Reference, Use, with_references
from personalize.nodes.vico.blocks import ImageBlocks, chosen_layers
from personalize.nodes.vico.nodes_apply import MASKS as MASK_NAMES
from personalize.nodes.vico.nodes_apply import ApplyViCo, LoadViCo
from personalize.nodes.vico.nodes_train import TrainViCo
from personalize.nodes.vico.parts import ImageAttentionPart, WithReferences
from personalize.nodes.vico.prompts import layout_of_prompt
from personalize.nodes.vico.terms import ReferenceAttentionLoss
from support import vico_by_hand
from support.inprocess import dynamic_vram
from support.sampling import difference, encoded, sample
from support.vico_by_hand import DualStream
from support.vico_scene import MASKERS

pytestmark = pytest.mark.usefixtures("execute")  # the server object that runs report to
WORD = "<my-dog>"
TEMPLATES = ("a photo of a {}", "{} on the very old wooden table", "two of my friends and one {} at night")
RECIPE = WithReferences(TemplateRecipe(TEMPLATES))
TWO = (subject(), subject(placeholder="<my-toy>", count=2))
WEIGHT = 0.3


def method(variant="paper", **more):
    return {"terms": (DiffusionLoss(), ReferenceAttentionLoss(WEIGHT)), "recipe": RECIPE, "subjects": TWO,
            "parts": (EmbeddingPart(), ImageAttentionPart(variant=variant)), **more}


class ByHand:
    """The objective of one batch, from DualStream, with gradients of its own copies of all parameters.

    goal: given the maps (B, P) of the word, what they are drawn to in place of Eq. 6. unet: of other weights.
    """

    def __init__(self, trainer, batch, variant: str, masker=None, goal=None, unet=None):
        session = trainer.session
        vectors, blocks, *_ = trainer.parts
        self.vectors = {name: {key: copied(p) for key, p in rows.items()} for name, rows in vectors.parameters.items()}
        self.tensors = {name: copied(p) for name, p in blocks.blocks.named_tensors()}
        rows, latents = batch.rows["subject"], batch.latents["subject"]
        tokens = [trainer.objective.text.tokenizer(row.prompt) for row in rows]
        prompts = encode(session.clip, tokens, [self.vectors] * len(rows))
        y = None
        if prompts.pooled is not None:
            side = 8 * latents.noisy.shape[-1]
            y = session.model.model.encode_adm(pooled_output=prompts.pooled, width=side, height=side, device="cpu")
        positions = [tuple(tokens[i].span(batch.concept(row).placeholder)) for i, row in enumerate(rows)]
        assert len(set(positions)) > 1, "prompts of one batch must differ in where the word is"
        sampling = session.sampling
        stream = DualStream(unet or unet_of(session.model), self.tensors, masker or MASKERS[variant],
                            variant == "released")
        references = batch.latents["reference"].clean[:, None]
        predicted = stream(sampling.calculate_input(latents.sigma, latents.noisy), references,
                           sampling.timestep(latents.sigma).float(), prompts.cond, y, [[where] for where in positions])
        self.diffusion = (predicted - wanted_output(sampling, latents)).square().mean()
        ends = [t.ends[0] for t in tokens]
        self.regularisation = WEIGHT * sum(reference_attention(maps, positions, ends, goal) for maps in stream.maps)
        (self.diffusion + self.regularisation).backward()


def copied(parameter: Tensor) -> Tensor:
    return parameter.detach().clone().requires_grad_()


def wanted_output(sampling, latents) -> Tensor:
    """What the U-Net should give: the noise, or for v-prediction the velocity α ε − σ x at α² + σ² = 1."""
    if not isinstance(sampling, V_PREDICTION):
        return latents.noise
    angle = latents.sigma.double().atan().view(-1, 1, 1, 1)
    return (angle.cos() * latents.noise - angle.sin() * latents.clean).float()


def reference_attention(maps: Tensor, positions, ends, goal) -> Tensor:
    """Eq. 6 row by row, the end's side held fixed; or the alignment of Fig. 9 to a goal."""
    words = [row[:, list(where)].sum(-1) for row, where in zip(maps, positions)]
    if goal is None:
        targets = [row[:, end].detach() / row[:, end].max().detach() for row, end in zip(maps, ends)]
    else:
        targets = goal(torch.stack(words).detach())
    return torch.stack([(word / word.max() - target).square().mean() for word, target in zip(words, targets)]).mean()


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-3) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance * float(expected.abs().max()), rtol=tolerance)


def same_gradients(trainer, hand: ByHand, tolerance: float = 1e-3) -> None:
    vectors, blocks, *_ = trainer.parts
    for name, p in blocks.blocks.named_tensors():
        close(p.grad, hand.tensors[name].grad, tolerance)
    for name, rows in vectors.parameters.items():
        for key, p in rows.items():
            close(p.grad, hand.vectors[name][key].grad, tolerance)


@pytest.mark.parametrize("variant", ["paper", "released", "none"])
def test_loss_and_gradients_equal_both_streams_by_hand_on_sd15(sd15, variant):
    compare(sd15, variant)


@pytest.mark.parametrize("variant", ["paper", "released", "none"])
def test_loss_and_gradients_equal_both_streams_by_hand_on_sdxl(sdxl, variant):
    compare(sdxl, variant)


@pytest.mark.parametrize("kind", ["sd21", "sdxl_zsnr"])
def test_loss_and_gradients_equal_both_streams_by_hand_where_velocity_is_predicted(request, kind):
    compare(request.getfixturevalue(kind), "paper")


def compare(checkpoint, variant: str) -> None:
    seen = []

    def action(trainer, batch):
        values, _ = trainer._micro_batches(batch, measured=False)
        hand = ByHand(trainer, batch, variant)
        assert values["diffusion"] == pytest.approx(hand.diffusion.item(), rel=1e-4)
        assert values["reference attention"] == pytest.approx(hand.regularisation.item(), rel=1e-3)
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
def test_memory_settings_do_not_change_the_gradient(request, kind, settings):
    checkpoint = request.getfixturevalue(kind)
    how = method(terms=(DiffusionLoss(), ReferenceAttentionLoss(WEIGHT), *CORE))
    plain, saving = gradients(checkpoint, how), gradients(checkpoint, how, **settings)
    torch.testing.assert_close(saving, plain, atol=1e-4 * float(plain.abs().max()), rtol=1e-3)


class Rotated:
    """A copy of the U-Net in which an OFT's weights are R W with R = (I + Q)⁻¹ (I − Q), Q = B − Bᵀ (Cayley).

    blocks: own copies of the OFT's B, which get their gradient from `backward` once the copy's weights have theirs.
    """

    def __init__(self, unet, adapter):
        self.unet, self.blocks, self.weights = copy.deepcopy(unet), {}, []
        for key, (prefix, module) in adapter.wrappers.items():
            turned = self.unet.get_submodule(key.removeprefix("diffusion_model.").removesuffix(".weight"))
            self.blocks[prefix] = blocks = copied(module.oft_blocks)
            skew, eye = blocks - blocks.mT, torch.eye(blocks.shape[-1])
            weight = torch.block_diag(*torch.linalg.solve(eye + skew, eye - skew)) @ turned.weight.float()
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


def test_oft_turns_both_streams_and_learns_from_both(sd15):
    """Appendix I: gradients of image blocks, embedding and OFT against both streams with weights R W."""
    compared = []

    def action(trainer, batch):
        adapter = trainer.parts[2]
        randomise(adapter)
        values, _ = trainer._micro_batches(batch, measured=False)
        rotated = Rotated(unet_of(trainer.session.model), adapter)
        hand = ByHand(trainer, batch, "paper", unet=rotated.unet)
        rotated.backward()
        assert values["diffusion"] == pytest.approx(hand.diffusion.item(), rel=1e-4)
        assert values["reference attention"] == pytest.approx(hand.regularisation.item(), rel=1e-3)
        same_gradients(trainer, hand)
        for prefix, module in adapter.wrappers.values():
            found, expected = module.oft_blocks.grad, rotated.blocks[prefix].grad
            if expected.any():
                close(found, expected)
                compared.append(prefix)
            else:  # a single pixel attends to itself, whatever its query and key are
                assert found.abs().max() < 1e-8 and prefix.endswith(("to_q", "to_k"))

    with in_place_of_a_step(action):
        train(sd15, Settings(steps=1, batch_size=4), **method(
            parts=(*method()["parts"], AdapterPart("OFT", rank=8, alpha=0.0))))
    assert len(compared) > 100


def test_resume_is_exact_and_beside_oft_all_parts_learn(sd15):
    """Appendix I: image blocks, embedding and OFT together."""
    parts = (*method()["parts"], AdapterPart("OFT", rank=8, alpha=0.0, lr=1e-3))
    how, settings = method(parts=parts), Settings(steps=4, batch_size=2)
    whole, _, end = train(sd15, settings, **how)
    first, _, state = train(sd15, settings, each_step=lambda trainer, record: record["step"] < 2, **how)
    second, _, resumed = train(sd15, settings, resume=(state, first.step, first.history), **how)
    assert [r["loss"] for r in second.history] == [r["loss"] for r in whole.history]
    assert all(torch.equal(resumed[name], value) for name, value in end.items())
    for part in range(3):
        assert any(not torch.equal(end[name], state[name]) for name in end if name.startswith(f"part.{part}."))


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
    batch = Trainer._batch
    monkeypatch.setattr(Trainer, "_batch", lambda trainer, step: replace(batch(trainer, 1), step=step))
    trainer, _, _ = train(sd15, Settings(steps=12, batch_size=2), **method(parts=(ImageAttentionPart(2e-3),)))
    losses = [record["loss"] for record in trainer.history]
    assert losses[-1] < 0.97 * losses[0]


def with_masks(of):
    """The subject with a mask on each picture: its upper left part."""
    pictures = []
    for i, picture in enumerate(of.pictures):
        masks = torch.zeros(picture.variants.shape[:3])
        masks[:, :24 + 8 * i, :40] = 1
        pictures.append(replace(picture, masks=masks))
    return replace(of, pictures=tuple(pictures))


def shown_masks(batch, patches: int) -> Tensor:
    """What the masks of a batch's references cover of each patch."""
    side = round(patches ** 0.5)
    masks = [batch.subjects[row.subject].pictures[row.picture].masks[row.variant] for row in batch.rows["reference"]]
    return F.adaptive_avg_pool2d(torch.stack(masks)[:, None], (side, side)).flatten(1)


def test_given_masks_take_the_place_of_automatic_ones(sd15):
    masked = tuple(map(with_masks, TWO))
    part = ImageAttentionPart(given_masks=True)
    compared = []

    def action(trainer, batch):
        values, _ = trainer._micro_batches(batch, measured=False)
        given = ByHand(trainer, batch, "paper", lambda maps: shown_masks(batch, maps.shape[-1]))
        assert values["diffusion"] == pytest.approx(given.diffusion.item(), rel=1e-4)
        same_gradients(trainer, given)
        automatic = ByHand(trainer, batch, "paper")
        compared.append(values["diffusion"] != pytest.approx(automatic.diffusion.item(), rel=1e-4))

    with in_place_of_a_step(action):
        train(sd15, Settings(steps=1, batch_size=4), **method(parts=(EmbeddingPart(), part), subjects=masked))
    assert compared == [True]
    with pytest.raises(ValueError, match="Masks of the pictures are asked for, but no picture"):
        train(sd15, Settings(steps=1, batch_size=2), **method(parts=(EmbeddingPart(), part)))


@pytest.mark.parametrize("target", ["object mask", "given mask"])
def test_alignment_in_place_of_masking(sd15, target):
    """Fig. 9: the map of the word is drawn to a mask, and the image blocks see all of the reference."""
    subjects, compared = tuple(map(with_masks, TWO)), []

    def action(trainer, batch):
        values, _ = trainer._micro_batches(batch, measured=False)
        goal = vico_by_hand.otsu_mask if target == "object mask" else lambda word: shown_masks(batch, word.shape[-1])
        hand = ByHand(trainer, batch, "none", goal=goal)
        assert values["reference attention"] == pytest.approx(hand.regularisation.item(), rel=1e-3)
        assert values["diffusion"] == pytest.approx(hand.diffusion.item(), rel=1e-4)
        same_gradients(trainer, hand, 5e-3)  # flat maps: gradients of the map and of its largest value nearly cancel
        compared.append(values["reference attention"])

    with in_place_of_a_step(action):
        train(sd15, Settings(steps=1, batch_size=4), **method(
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
    blocks = ImageBlocks(sd15.model, chosen_layers(attention_layers(sd15.model), "decoder"))
    reading = with_references(sd15.model, blocks, (), [Reference(torch.zeros(1, 4, 8, 8))], Use("paper"), Record("A"))
    with pytest.raises(ValueError, match="The MODEL for Train already reads a reference; connect the model from"):
        train(sd15._replace(model=reading), Settings(steps=1, batch_size=2), **method())


def test_train_embedding_and_train_vico_are_one_too_many():
    with pytest.raises(ValueError, match="previous holds Train Embedding, but Train ViCo trains the word's vectors"):
        TrainViCo.execute(1e-5, 5e-3, "decoder", "Eq. 5", (EmbeddingPart(),))
    chain = TrainViCo.execute(1e-5, 0.0, "decoder", "as released", (EmbeddingPart(),)).args[0]
    assert chain == (EmbeddingPart(), ImageAttentionPart(1e-5, "decoder", "released"))


# ------------------------------------------------------------------------------------------------ previews and files
def test_previews_read_a_picture_of_the_first_subject(sd15):
    """As Apply ViCo draws with the file that would be saved now."""
    drawn = []

    def each_step(trainer, record):
        vectors, part = trainer.parts
        clip = clip_with_vectors(trainer.session.clip, vectors.learned_vectors())
        layout = layout_of_prompt(clip, f"a photo of a {WORD}", [WORD])
        options = {SPANS: dict(layout.spans), TOKENS: layout.tokens}
        positive, negative = encoded(clip, f"a photo of a {WORD}", **options), encoded(clip, "")
        preview = sample(trainer.session.model, positive, negative, size=(8, 8))
        latents = trainer.latents.noised((Row(0, 0, 0, ""),), trainer.session.sampling, 0, 1, "reference", "cpu").clean
        blocks, = part.files()
        drawn.append((preview, positive, negative, latents, {name: t.clone() for name, t in blocks.tensors.items()}))
        assert json.loads(blocks.metadata["words"]) == [WORD, "<my-toy>"]
        return True

    train(sd15, Settings(steps=3, batch_size=4), each_step=each_step, **method(parts=(
        EmbeddingPart(), ImageAttentionPart(1e-2))))
    preview, positive, negative, latents, tensors = drawn[-1]
    blocks = ImageBlocks(sd15.model, chosen_layers(attention_layers(sd15.model), "decoder"))
    for name, parameter in blocks.named_tensors():
        parameter.data.copy_(tensors[name])
    reading = with_references(sd15.model, blocks, (), [Reference(latents, WORD)], Use("paper"), Record("A"))
    close(preview, sample(reading, positive, negative, size=(8, 8)))
    assert not torch.equal(preview, sample(sd15.model, positive, negative, size=(8, 8)))


@pytest.mark.parametrize("object_mask, variant, adapter", [
    ("Eq. 5", "paper", True), ("as released", "released", False), ("none", "none", True),
    ("given mask", "paper", False)])
def test_files_draw_as_the_trained_model_drew(sd15, monkeypatch, object_mask, variant, adapter):
    """Stock LoRA loader, Load Concept, Load ViCo and Apply ViCo as trained, against the model inside its training."""
    drawn, prompt = [], f"a photo of a {WORD}"

    def after_step(training, trainer, record):
        going_on = original(training, trainer, record)
        if record["step"] == record["total"]:
            for group in trainer.optimizer.param_groups:
                for p in group["params"]:
                    p.data = p.data.half().float()  # as in the files
            clip = clip_with_vectors(trainer.session.clip, training._vectors())
            layout = layout_of_prompt(clip, prompt, [WORD])
            positive = encoded(clip, prompt, **{SPANS: dict(layout.spans), TOKENS: layout.tokens})
            drawn.append(sample(trainer.session.model, positive, encoded(clip, ""), size=(8, 8)))
        return going_on

    original = job_module._Run._after_step
    monkeypatch.setattr(job_module._Run, "_after_step", after_step)
    oft = TrainAdapter.execute("OFT", 8, 0.0, 1e-2, True).args[0] if adapter else ()
    parts = TrainViCo.execute(1e-2, 5e-3, "decoder", object_mask, oft).args[0]
    job = make_job(sd15, f"vico-files-{variant}-{adapter}", steps=3, parts=parts, terms=method()["terms"],
                   recipe=RECIPE, subjects=(with_masks(subject()),), settings=Settings(steps=3, batch_size=4))
    saved, = run(job).report["saved"]
    concept = PersonalizeLoadConcept.execute(saved["embeddings"][0], "", "").args[0]
    vico, model = LoadViCo.execute("none", concept).args[0], sd15.model
    assert vico.variant == variant
    if adapter:
        loras = Path(folder_paths.get_folder_paths("loras")[0])
        model, = nodes.LoraLoaderModelOnly().load_lora_model_only(
            model, str(Path(saved["files"][-1]).relative_to(loras)), 1.0)
    pixels = job.subjects[0].pictures[0].variants

    def draw(mask: str, model=model) -> Tensor:
        with torch.inference_mode():
            reading = ApplyViCo.execute(model, vico, sd15.vae, pixels, "", 1.0, 0.0, 1.0, mask, "both", 1, 0,
                                        "squash").args[0]
            positive = PersonalizeEncodeWithSpans.execute(sd15.clip, prompt, "", concept).args[0]
        return sample(reading, positive, encoded(sd15.clip, ""), size=(8, 8))

    assert difference(draw("as trained"), drawn[0]) < 1e-4
    others = [mask for mask, name in MASK_NAMES.items() if name != variant]
    assert len(others) == 2 and all(difference(draw(mask), drawn[0]) > 0.1 for mask in others)
    assert not adapter or difference(draw("as trained", sd15.model), drawn[0]) > 0.1


def test_every_saved_step_is_kept_and_found_by_its_concept(sd15):
    oft = AdapterPart("OFT", rank=8, alpha=0.0, lr=1e-3)
    job = make_job(sd15, "vico-steps", parts=(*method()["parts"], oft), save_every=2, recipe=RECIPE,
                   preview_every=4, terms=method()["terms"])
    before = encoded(sd15.clip, "a photo of a dog"), encoded(sd15.clip, "")
    picture = sample(sd15.model, *before)
    last = run(job)
    after = encoded(sd15.clip, "a photo of a dog"), encoded(sd15.clip, "")
    assert all(torch.equal(new[0][0], old[0][0]) for new, old in zip(after, before)), "the text encoder is as it was"
    assert torch.equal(sample(sd15.model, *before), picture), "the U-Net is as it was"
    saved = last.report["saved"]
    assert [Path(file).name for each in saved for file in each["part_files"]] == [
        "image-blocks-000002.safetensors", "image-blocks-000004.safetensors"]
    assert [preview["step"] for preview in last.report["previews"]] == [0, 4]
    assert last.weights and not any("image_cross_attention" in name for name in last.weights)
    earlier = run(replace(job, use_step=2))
    found = {step: LoadViCo.execute("none", outcome.concepts).args[0] for step, outcome in ((2, earlier), (4, last))}
    for step, vico in found.items():
        assert vico.source == f"image-blocks-{step:06d}.safetensors"
        assert (vico.variant, vico.words, vico.size, vico.text_width) == ("paper", ("<my-dog>",), 64, 32)
    assert not torch.equal(found[2].blocks["output", 4]["ff.net.2.bias"], found[4].blocks["output", 4]["ff.net.2.bias"])
    for step, outcome in ((2, earlier), (4, last)):
        saving = PersonalizeSaveConcept.execute(outcome.concepts, f"vico-chosen-{step}")
        for name in (saving.args[0][0], next(each["embeddings"][0] for each in saved if each["step"] == step)):
            concept = PersonalizeLoadConcept.execute(name, "", "").args[0]
            vico = LoadViCo.execute("none", concept).args[0]
            assert vico.source == found[step].source and concept[0].placeholder == WORD
            assert torch.equal(vico.blocks["output", 4]["ff.net.2.bias"],
                               found[step].blocks["output", 4]["ff.net.2.bias"])
    Path(saved[0]["part_files"][0]).unlink()
    with pytest.raises(ValueError, match="use_step is 2 but its file .*image-blocks-000002.* has been deleted"):
        run(replace(job, use_step=2))
    with pytest.raises(ValueError, match="There is no vico-steps-.*image-blocks-000002.safetensors in .*vico"):
        LoadViCo.execute("none", earlier.concepts)


def test_concept_of_another_training_has_no_blocks():
    with pytest.raises(ValueError, match="Concept <my-dog> does not say which training it comes from"):
        LoadViCo.execute("none", (subject().concept,))
    with pytest.raises(ValueError, match="file is none and no concept is connected"):
        LoadViCo.execute("none")
