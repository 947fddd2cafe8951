"""Training leaves MODEL, CLIP and VAE as they were, works beside other patches, and refuses with a sentence what it
cannot do. That weights are bit-identical and no hook is left is checked by the checkpoint fixtures after every test."""
from __future__ import annotations

from dataclasses import replace

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import pytest
import torch

from personalize.nodes.training.failures import OutOfMemory
from personalize.nodes.training.parts.embedding import EmbeddingPart
from personalize.nodes.training.parts.weights import AdapterPart
from personalize.nodes.training.plan import Settings
from support.trainings import ERRORS, FAILED, Failing, make_job, run, sample, subject, train

pytestmark = pytest.mark.usefixtures("execute")


@pytest.fixture(autouse=True)
def none_failed():
    FAILED.clear()


def with_lora(checkpoint):
    """The checkpoint's model with a random LoRA, as Load LoRA gives it."""
    key = "diffusion_model.output_blocks.5.1.transformer_blocks.0.attn2.to_v"
    weight = comfy.model_patcher.comfy.utils.get_attr(checkpoint.model.model, f"{key}.weight")
    draw = torch.Generator().manual_seed(2)
    lora = {f"{key}.diff": torch.randn(weight.shape, generator=draw)}
    return comfy.sd.load_lora_for_models(checkpoint.model, None, lora, 1.0, 0.0)[0]


@pytest.mark.parametrize("kind", ["sd15", "sd21"])
def test_samples_are_bit_identical_after_training(request, kind):
    checkpoint = request.getfixturevalue(kind)
    before = sample(*checkpoint[:2])
    train(checkpoint, Settings(steps=2), parts=(EmbeddingPart(), AdapterPart(lr=1e-2)))
    assert torch.equal(sample(*checkpoint[:2]), before)


def test_a_model_with_a_lora_is_trained_on_as_it_is(sd15):
    patched = sd15._replace(model=with_lora(sd15))
    plain, with_ = sample(*sd15[:2]), sample(*patched[:2])
    assert not torch.equal(plain, with_)
    losses = [train(checkpoint, Settings(steps=1))[0].history[0]["loss"] for checkpoint in (sd15, patched)]
    assert losses[0] != losses[1]
    assert torch.equal(sample(*patched[:2]), with_) and torch.equal(sample(*sd15[:2]), plain)


def test_other_packs_attention_patches_act_in_training_and_see_their_own_block(sd15):
    """Also in the recomputation of gradient checkpointing, where ComfyUI's options have moved on to the last block."""
    seen = []

    def patch(n, context, value, options):
        seen.append((options["block"], tuple(n.shape[1:])))
        return n, context, value

    model = sd15.model.clone()
    model.set_model_attn2_patch(patch)
    train(sd15._replace(model=model), Settings(steps=1, checkpointing=True))
    forward, again = seen[:len(seen) // 2], seen[len(seen) // 2:]
    assert sorted(again) == sorted(forward) and len(set(forward)) == 16


def test_another_setting_of_another_packs_patch_is_another_run(sd15):
    def patched(strength):
        model = sd15.model.clone()
        model.set_model_attn2_patch(lambda n, context, value, options: (n, context, value * strength))
        return run(make_job(sd15, "patched", steps=1, model=model)).report

    assert patched(0.5)["run"] == patched(0.5)["run"] != patched(0.9)["run"]


def test_training_does_not_move_the_global_random_numbers(sd15):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    run(make_job(sd15, "random-state", steps=2, preview_every=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_chunked_attention_without_a_backward_pass_is_not_used(sd15, monkeypatch):
    """ComfyUI's CPU attention works in chunks, in place, when memory is low."""
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *args, **kwargs: 1)
    trainer, _, _ = train(sd15, Settings(steps=1))
    assert trainer.history


@pytest.mark.parametrize("error", ["broken", "interrupt"])
def test_an_exception_loses_nothing(sd15, error):
    before = sample(*sd15[:2])
    job = make_job(sd15, f"exception-{error}", parts=(AdapterPart(lr=1e-2), EmbeddingPart()),
                   terms=(Failing(error=error, step=3),))
    with pytest.raises(type(ERRORS[error])):
        run(job)
    assert not comfy.model_management.in_training
    assert torch.equal(sample(*sd15[:2]), before)


def test_out_of_memory_halves_the_rows_once(sd15):
    settings = Settings(steps=2, batch_size=4, optimizer="SGD")
    trainer, learned, _ = train(sd15, settings, terms=(Failing(error="memory", step=1, times=1),))
    assert FAILED == [4] and trainer.rows_at_once == 2
    _, whole, _ = train(sd15, settings)
    torch.testing.assert_close(learned["<my-dog>"]["clip_l"], whole["<my-dog>"]["clip_l"], atol=1e-6, rtol=1e-4)


def test_out_of_memory_twice_says_what_to_set(sd15):
    with pytest.raises(OutOfMemory, match="Step 1 does not fit into memory with 2 rows at once; set micro_batch to 1"):
        train(sd15, Settings(steps=2, batch_size=4), terms=(Failing(error="memory", step=1),))
    assert FAILED == [4, 2]


def test_a_full_disk_leaves_the_old_files(sd15, monkeypatch):
    import os
    job = make_job(sd15, "full-disk", steps=2)
    first = run(job)
    monkeypatch.setattr(os, "fsync", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left on device"):
        run(replace(job, settings=replace(job.settings, steps=4)))
    monkeypatch.undo()
    again = run(job)
    assert torch.equal(again.concepts[0].vectors["clip_l"], first.concepts[0].vectors["clip_l"])


def test_fp8_weights_train(sd15, tiny_checkpoints):
    import folder_paths
    path = folder_paths.get_full_path_or_raise("checkpoints", tiny_checkpoints["sd15"])
    with torch.inference_mode():
        model, *_ = comfy.sd.load_checkpoint_guess_config(path, output_vae=False, output_clip=False,
                                                          model_options={"dtype": torch.float8_e4m3fn})
    assert model.model.diffusion_model.input_blocks[0][0].weight.dtype == torch.float8_e4m3fn
    _trainer, learned, _ = train(sd15._replace(model=model), Settings(steps=2))
    assert all(rows.isfinite().all() for rows in learned["<my-dog>"].values())


def test_weights_that_only_their_loader_understands_are_refused(sd15):
    """A stand-in for what GGUF loaders put in the weights' place: bytes that only their own layer understands."""
    model = sd15.model.clone()
    conv = model.model.diffusion_model.out[2]
    original = conv.weight
    conv.weight = torch.nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False)
    try:
        with pytest.raises(ValueError, match="only their own loader .* GGUF files .* fp32 or fp8 checkpoint"):
            train(sd15._replace(model=model), Settings(steps=1))
    finally:
        conv.weight = original


def test_a_clip_of_another_family_is_refused(sd15, sdxl):
    with pytest.raises(ValueError, match="CLIP makes encodings of width .* but the model .* takes"):
        run(make_job(sd15, "family", clip=sdxl.clip))


def test_pictures_of_different_sizes_are_refused(sd15):
    with pytest.raises(ValueError, match=r"one size, but <my-dog>: picture 1 is 64×64 and <toy>: picture 1 is 96×96"):
        run(make_job(sd15, "sizes", subjects=(subject(), subject(size=96, placeholder="<toy>"))))


def test_two_subjects_of_one_name_are_refused(sd15):
    with pytest.raises(ValueError, match="Two subjects share the placeholder <my-dog>"):
        run(make_job(sd15, "names", subjects=(subject(), subject())))


def test_a_name_that_leaves_the_folder_is_refused(sd15):
    with pytest.raises(ValueError, match="would leave ComfyUI's folder"):
        run(make_job(sd15, "../elsewhere"))


def test_a_model_that_is_no_unet_is_refused(sd15):
    from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
    config = comfy.supported_models.SD3({"in_channels": 16, "pos_embed_scaling_factor": None, "depth": 1,
                                         "patch_size": 2,
                                         "pos_embed_max_size": 16, "adm_in_channels": 32, "context_embedder_config":
                                         {"target": "torch.nn.Linear", "params": {"in_features": 32,
                                                                                  "out_features": 64}}})
    model = comfy.model_base.SD3(config)
    assert isinstance(model.diffusion_model, OpenAISignatureMMDITWrapper)
    patcher = comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
    with pytest.raises(ValueError, match="The model SD3 is of no family that this pack knows.*; use SD1.x, SD2.x, "
                                         "SDXL, Lumina 2"):
        run(make_job(sd15, "no-unet", model=patcher))


def test_an_inpainting_model_is_refused(sd15):
    model = sd15.model.clone()
    unet = model.model.diffusion_model
    unet.in_channels = 9
    try:
        with pytest.raises(ValueError, match="takes 9 input channels, 4 of them latents"):
            run(make_job(sd15, "inpainting", model=model))
    finally:
        unet.in_channels = 4


def test_a_vae_of_other_channels_is_refused(sd15):
    sixteen = comfy.sd.VAE(sd={k: v for k, v in _taesd(16).items()})
    with pytest.raises(ValueError, match="VAE makes latents of 16 channels but the model takes 4"):
        run(make_job(sd15, "vae", vae=sixteen))


def _taesd(channels: int):
    from comfy.taesd.taesd import TAESD
    module = TAESD(latent_channels=channels)
    draw = torch.Generator().manual_seed(0)
    state = {k: torch.randn(v.shape, generator=draw) * 0.05 for k, v in module.state_dict().items()}
    return {**state, "vae_scale": torch.tensor(1.0), "vae_shift": torch.tensor(0.0)}
