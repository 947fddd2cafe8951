"""Training the text encoders: gradients, files that the stock loader applies, and a CLIP that is as before."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import comfy.sd
import comfy.utils
import folder_paths
import pytest
import safetensors.torch
import torch
from comfy.model_management import InterruptProcessingException

from personalize.nodes.files import version_of
from personalize.nodes.text.embedding_files import save_embedding
from personalize.nodes.text.encode import encode
from personalize.nodes.text.encoder_weights import adaptable_layers
from personalize.nodes.training.applied import with_weights
from personalize.nodes.training.batch import Prior
from personalize.nodes.training.counted import counted
from personalize.nodes.training.diffusion import DiffusionLoss
from personalize.nodes.training.interfaces import Encode
from personalize.nodes.training.parts.embedding import EmbeddingPart
from personalize.nodes.training.parts.text_encoder import TextEncoderPart
from personalize.nodes.training.parts.weights import AdapterPart, UNetPart
from personalize.nodes.training.passes import _Work
from personalize.nodes.training.plan import Settings
from personalize.nodes.training.preview import Painter, preview_noise
from personalize.nodes.training.prior import PriorPreservation
from support.pictures import MadePicture
from support.training_page import training_prompt
from support.trainings import (
    FAILED,
    Failing,
    flat_gradient,
    gradients,
    in_place_of_a_step,
    make_job,
    move,
    run,
    sample,
    subject,
    train,
)

WHOLE, LORA = TextEncoderPart(1e-3), TextEncoderPart(1e-2, rank=2)
FORMS = pytest.mark.parametrize("part", [WHOLE, LORA], ids=["all weights", "LoRA"])
KINDS = pytest.mark.parametrize("kind", ["sd15", "sdxl"])
PROMPT = "a photo of a <my-dog>"


@pytest.fixture
def wide(kind, tiny_checkpoints, embedding_folder, request):
    """The checkpoint with text encoders in float32, in which the stock loader rounds nothing."""
    request.getfixturevalue(kind)
    with torch.inference_mode():
        path = folder_paths.get_full_path("checkpoints", tiny_checkpoints[kind])
        return comfy.sd.load_checkpoint_guess_config(path, te_model_options={"dtype": torch.float32},
                                                    embedding_directory=folder_paths.get_folder_paths("embeddings"))[:3]


@torch.no_grad()
def live(trainer, prompt=PROMPT):
    """The encoding in a training, with what is learned so far."""
    tokens = trainer.objective.text.tokenizer(prompt)
    encoded = encode(trainer.session.clip, [tokens], [trainer.vectors()])
    return encoded.cond.clone(), encoded.pooled.clone()


@torch.inference_mode()
def stock(clip, prompt):
    return clip.encode_from_tokens(clip.tokenize(prompt), return_pooled=True)


# ------------------------------------------------------------------------------------------------ gradients
@KINDS
def test_gradients_are_those_of_a_plain_loop_over_the_rows(kind, request):
    """Autograd on the encoders' own weights, each row encoded and denoised alone."""
    found = {}

    def collect(trainer, batch):
        trainer._micro_batches(batch, measured=False)
        session, (part,) = trainer.session, trainer.parts
        found["ours"] = {key: None if change.diff.grad is None else change.diff.grad.clone()
                         for key, (_, change) in part.changes.items()}
        encoders = session.clip.cond_stage_model
        encoders.requires_grad_(True)
        latents, losses = batch.latents["subject"], []
        for i, row in enumerate(batch.rows["subject"]):
            encoded = encode(session.clip, [trainer.objective.text.tokenizer(row.prompt)], [trainer.frozen])
            conds = session.model.model.extra_conds(
                cross_attn=encoded.cond, pooled_output=encoded.pooled, noise=latents.noisy[i:i + 1],
                device=session.device, width=64, height=64)
            given = {name: cond.cond for name, cond in conds.items()}
            predicted = session.model.model.apply_model(
                latents.noisy[i:i + 1], latents.sigma[i:i + 1],
                transformer_options=session.transformer_options(latents.sigma[i:i + 1]), **given)
            error = session.noise.output_error(latents.clean[i:i + 1], latents.sigma[i:i + 1], predicted)
            losses.append(error.square().mean())
        torch.stack(losses).mean().backward()
        found["by hand"] = {key: encoders.get_parameter(key).grad for key in found["ours"]}
        for p in encoders.parameters():
            p.grad = None
        encoders.requires_grad_(False)

    with in_place_of_a_step(collect):
        train(request.getfixturevalue(kind), Settings(steps=1, batch_size=2), parts=(WHOLE,))
    assert found["ours"].keys() == found["by hand"].keys()
    pulled = [key for key, gradient in found["ours"].items() if gradient is not None and gradient.norm() > 0]
    assert len(pulled) > 0.6 * len(found["ours"])
    for key in found["ours"]:
        ours, by_hand = (each[key] if each[key] is not None else torch.zeros(()) for each in found.values())
        scale = float(by_hand.abs().max())
        torch.testing.assert_close(ours, by_hand.to(ours), rtol=1e-4, atol=1e-5 * scale + 1e-8)


@FORMS
def test_gradients_equal_finite_differences(exact, part):
    slopes = []

    def measure(trainer, batch):
        if part.rank:
            move(trainer, 0.02 * torch.randn(sum(p.numel() for p in trainer.groups[0].params),
                                             generator=torch.Generator().manual_seed(2)))
        trainer._micro_batches(batch, measured=False)
        gradient = flat_gradient(trainer)
        direction = gradient / gradient.norm()
        values = []
        for step in (3e-4, -6e-4):
            move(trainer, step * direction)
            values.append(sum(trainer._micro_batches(batch, measured=False)[0].values()))
        slopes.append(((values[0] - values[1]) / 6e-4, float(gradient.norm())))

    with in_place_of_a_step(measure):
        train(exact("sd15"), Settings(steps=1, batch_size=2), parts=(part,))
    (numeric, analytic), = slopes
    assert analytic > 0 and numeric == pytest.approx(analytic, rel=1e-2)


def test_gradients_reach_only_what_is_declared(sd15):
    """Nothing of the models; the word and the U-Net's adapter only where their parts are in the chain."""
    seen = []

    def look(trainer, batch):
        trainer._micro_batches(batch, measured=False)
        session = trainer.session
        graded = [name for module in (session.model.model, session.clip.cond_stage_model)
                  for name, p in module.named_parameters() if p.grad is not None or p.requires_grad]
        seen.append((graded, {group.name: any(p.grad is not None for p in group.params) for group in trainer.groups}))

    with in_place_of_a_step(look):
        for parts in ((WHOLE,), (EmbeddingPart(), LORA, AdapterPart())):
            train(sd15, Settings(steps=1, batch_size=2), parts=parts)
    assert seen == [([], {"text encoder": True}),
                    ([], {"embedding": True, "text encoder LoRA": True, "LoRA": True})]


def test_a_reference_is_encoded_by_the_original(sd15):
    found = []

    def each_step(trainer, record):
        work = _Work(trainer.objective, trainer.batch(9))
        tokens = (trainer.objective.text.tokenizer("a photo of a dog"),)
        found.extend(work.encoded(Encode(tokens, grad=False, original=original)).cond for original in (True, False))
        return True

    train(sd15, Settings(steps=1, batch_size=1), parts=(WHOLE,), each_step=each_step)
    assert torch.equal(found[0], stock(sd15.clip, "a photo of a dog")[0]) and not torch.equal(found[0], found[1])


# ------------------------------------------------------------------------------------------------ files
@KINDS
def test_the_stock_loader_gives_the_live_model_bit_for_bit(kind, wide, tmp_path):
    """From a float32 file of all weights, with the word from its own file: nothing is counted twice."""
    found = {}

    def each_step(trainer, record):
        found.update(cond=live(trainer), plain=live(trainer, "a dog"), vectors=trainer.vectors()["<my-dog>"])
        return True

    trainer, *_ = train(wide, Settings(steps=2, batch_size=2), parts=(EmbeddingPart(0.1), WHOLE, UNetPart(1e-4)),
                        each_step=each_step)
    safetensors.torch.save_file(trainer.weights(), tmp_path / "learned.safetensors")
    word = save_embedding("word", found["vectors"], {})
    with torch.inference_mode():
        _, clip = comfy.sd.load_lora_for_models(
            *wide[:2], comfy.utils.load_torch_file(str(tmp_path / "learned.safetensors")), 1.0, 1.0)
    for prompt, (cond, pooled) in ((f"a photo of a embedding:{word.stem}", found["cond"]), ("a dog", found["plain"])):
        given, first = stock(clip, prompt)
        assert torch.equal(given, cond) and torch.equal(first, pooled)
        assert not torch.equal(given, stock(wide[1], prompt)[0])


@KINDS
def test_the_stock_loader_gives_what_a_lora_does_beside_the_weights(kind, wide):
    found = []
    trainer, *_ = train(wide, Settings(steps=3, batch_size=2), parts=(LORA,),
                        each_step=lambda trainer, record: found.append(live(trainer, "a dog")) or True)
    weights = trainer.weights()
    assert all(name.startswith("text_encoders.clip_") for name in weights)
    model, clip = with_weights(wide[0], wide[1], weights)
    given, plain = stock(clip, "a dog")[0], stock(wide[1], "a dog")[0]
    assert model is wide[0] and (given - plain).abs().max() > 0.01
    torch.testing.assert_close(given, found[-1][0], rtol=1e-4, atol=1e-4)


def test_only_models_that_changed_are_others(sd15):
    model, clip, _ = sd15
    weights = train(sd15, Settings(steps=1), parts=(AdapterPart(),))[0].weights()
    changed, same = with_weights(model, clip, weights)
    assert changed is not model and same is clip and with_weights(model, clip, {}) == (model, clip)


# ------------------------------------------------------------------------------------------------ runs
@FORMS
def test_at_rate_zero_nothing_changes(sd15, part):
    found = []
    frozen = type(part)(0.0, part.rank)
    trainer, *_ = train(sd15, Settings(steps=2, batch_size=1), parts=(frozen,),
                        each_step=lambda trainer, record: found.append(live(trainer, "a dog")[0]) or True)
    assert torch.equal(found[-1], stock(sd15.clip, "a dog")[0])
    _, clip = with_weights(*sd15[:2], trainer.weights())
    assert torch.equal(stock(clip, "a dog")[0], stock(sd15.clip, "a dog")[0])


@pytest.mark.parametrize("part, error", [(WHOLE, "broken"), (LORA, "interrupt")], ids=["all weights", "LoRA"])
def test_the_models_are_as_before_also_after_an_error(sd15, part, error):
    before, picture = stock(sd15.clip, "a dog"), sample(*sd15[:2])
    FAILED.clear()
    with pytest.raises((RuntimeError, InterruptProcessingException)):
        train(sd15, Settings(steps=4), parts=(part, AdapterPart()), terms=(Failing(error=error),))
    left = [name for name, module in sd15.clip.cond_stage_model.named_modules()
            if getattr(module, "weight_function", None) or getattr(module, "bias_function", None)]
    assert not left and torch.equal(sample(*sd15[:2]), picture)
    assert all(torch.equal(one, other) for one, other in zip(stock(sd15.clip, "a dog"), before, strict=True))


def test_a_stopped_run_goes_on_exactly(sd15):
    settings, parts = Settings(steps=4, batch_size=2), (EmbeddingPart(0.01), WHOLE, LORA)
    _, _, end = train(sd15, settings, parts=parts)
    _, _, half = train(sd15, settings, parts=parts, each_step=lambda trainer, record: trainer.step < 2)
    _, _, resumed = train(sd15, settings, parts=parts, resume=half)
    assert all(torch.equal(resumed.tensors[name], tensor) for name, tensor in end.tensors.items())
    assert all(any(name.startswith(f"part.{i}.") and tensor.abs().max() > 0 for name, tensor in end.tensors.items())
               for i in range(3))


def test_micro_batches_give_the_same_gradient_also_of_class_prompts(exact):
    """Prompts of the prior are encoded by what is trained, too."""
    checkpoint, prior = exact("sd15"), Prior((MadePicture(torch.rand(1, 64, 64, 3), caption="a dog"),))
    method = dict(parts=(WHOLE, LORA), subjects=(replace(subject(), prior=prior),))
    both = dict(method, terms=(DiffusionLoss(), PriorPreservation()))
    whole, pieces = gradients(checkpoint, both), gradients(checkpoint, both, micro_batch=1)
    assert (whole - pieces).norm() < 1e-4 * whole.norm()
    alone = gradients(checkpoint, dict(method, terms=(PriorPreservation(),)))
    assert alone.norm() > 0 and (gradients(checkpoint, method) + alone - whole).norm() < 1e-4 * whole.norm()


def test_previews_are_drawn_by_what_is_learned(sd15):
    drawn = []

    def each_step(trainer, record):
        noise = preview_noise(trainer.session.model, (64, 64), 0)
        how = trainer.session.family.preview
        drawn.append(Painter(trainer.session, sd15.vae, {}, ["a dog"]).draw("a dog", noise, how, 0))
        trainer.session.load()
        return True

    train(sd15, Settings(steps=2), parts=(TextEncoderPart(0.01, rank=2),), each_step=each_step)
    assert (drawn[0] - drawn[1]).abs().max() > 1e-3


def test_a_saved_step_is_read_back(sd15, folder):
    last, step = (run(make_job(sd15, "text", 4, (EmbeddingPart(), WHOLE), save_every=2, use_step=step))
                  for step in (0, 4))
    assert last.weights.keys() == step.weights.keys()
    for name, tensor in last.weights.items():
        torch.testing.assert_close(step.weights[name].float(), tensor, rtol=1e-3, atol=1e-7)
    _, clip = with_weights(*sd15[:2], step.weights)
    assert not torch.equal(stock(clip, "a dog")[0], stock(sd15.clip, "a dog")[0])


def test_quantised_encoders_take_a_lora_alone(sd15, tiny_checkpoints):
    with torch.inference_mode():
        path = folder_paths.get_full_path("checkpoints", tiny_checkpoints["sd15"])
        _, clip, *_ = comfy.sd.load_checkpoint_guess_config(
            path, output_model=False, output_vae=False, te_model_options={"dtype": torch.float8_e4m3fn})
    with pytest.raises(ValueError, match="Train Text Encoder changes the weights themselves, by less than lies"):
        train(sd15._replace(clip=clip), Settings(steps=1), parts=(WHOLE,))
    trainer, *_ = train(sd15._replace(clip=clip), Settings(steps=1), parts=(LORA,))
    assert any(tensor.abs().max() > 0 for name, tensor in trainer.weights().items() if "lora_up" in name)


def test_train_returns_the_clip_and_stock_nodes_use_its_file(execute, folder):
    """The CLIP that Train returns is the one that Load LoRA makes of the weights; without the part it is the same."""
    prompt = training_prompt("clip", "sd15.safetensors", steps=2, trainable=["8", 0])
    prompt["8"] = {"class_type": "PersonalizeTrainTextEncoder", "inputs": {
        "form": "all weights", "rank": 4, "learning_rate": 1e-2, "previous": ["5", 0]}}
    found = execute(prompt, get={"clip": ["6", 5], "lora": ["6", 2], "own": ["1", 1]}).values
    by_stock = with_weights(None, found["own"], found["lora"])[1]
    assert torch.equal(stock(found["clip"], "a dog")[0], stock(by_stock, "a dog")[0])
    assert not torch.equal(stock(found["clip"], "a dog")[0], stock(found["own"], "a dog")[0])
    plain = execute(training_prompt("plain", "sd15.safetensors", steps=2),
                    get={"clip": ["6", 5], "own": ["1", 1]}).values
    assert plain["clip"] is plain["own"]


@KINDS
def test_memory_of_all_weights_is_counted_from_the_file(kind, request, tiny_checkpoints):
    path = Path(folder_paths.get_full_path("checkpoints", tiny_checkpoints[kind]))
    counts = counted(path, version_of(path), 64, "fp32", False)
    matrices = [module.weight.numel() for module in adaptable_layers(request.getfixturevalue(kind).clip).values()]
    assert counts.of_text == sum(matrices) > 0
