"""The test harness itself: real models of every family load, sample and encode; the executor reports what happened."""
from __future__ import annotations

import time

import pytest
import torch

from support.failures import PromptFailed
from support.prompts import picture_prompt

FAMILIES = {"sd15": ("EPS", ["clip_l"], 32), "sd21": ("V_PREDICTION", ["clip_h"], 40),
            "sdxl": ("EPS", ["clip_l", "clip_g"], 80), "sdxl_zsnr": ("V_PREDICTION", ["clip_l", "clip_g"], 80)}


@pytest.mark.parametrize("kind", FAMILIES)
def test_tiny_checkpoint_is_its_family(kind, load_checkpoint):
    prediction, encoders, width = FAMILIES[kind]
    model, clip, _vae = load_checkpoint(kind)
    assert model.model.model_type.name == prediction
    assert getattr(model.model.model_sampling, "zsnr", False) == (kind == "sdxl_zsnr")
    assert [name for name in ("clip_l", "clip_h", "clip_g") if hasattr(clip.cond_stage_model, name)] == encoders
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize("a photo of a dog"))
    assert conditioning[0][0].shape == (1, 77, width)
    assert all(weight.is_inference() for weight in model.model.parameters())
    assert all(torch.isfinite(weight).all() for weight in clip.cond_stage_model.state_dict().values())


@pytest.mark.parametrize("kind", FAMILIES)
def test_executor_draws_a_picture(kind, execute, tiny_checkpoints, base):
    run = execute(picture_prompt(tiny_checkpoints[kind]), get={"picture": ["5", 0], "latent": ["4", 0]})
    picture = run.values["picture"]
    assert picture.shape == (1, 64, 64, 3) and torch.isfinite(picture).all() and picture.std() > 0.01
    assert torch.isfinite(run.values["latent"]["samples"]).all()
    assert (base / "output" / run.ui["6"]["images"][0]["filename"]).is_file()
    assert run.progress[-1][:2] == (2, 2)


def test_text_changes_the_picture(execute, tiny_checkpoints):
    pictures = [execute(picture_prompt(tiny_checkpoints["sd15"], text=text),
                        get={"picture": ["5", 0]}).values["picture"]
                for text in ("a photo of a dog", "a photo of a dog", "a red teapot")]
    assert torch.equal(pictures[0], pictures[1])
    assert not torch.equal(pictures[0], pictures[2])


def test_session_caches_and_a_plain_call_does_not(execute, tiny_checkpoints):
    prompt = picture_prompt(tiny_checkpoints["sd15"])
    session = execute.session()
    assert session(prompt).cached == []
    assert "4" in session(prompt).cached
    assert execute(prompt).cached == []


def test_failures_are_told_apart(execute, tiny_checkpoints):
    wrong_value = picture_prompt(tiny_checkpoints["sd15"])
    wrong_value["4"]["inputs"]["steps"] = 0
    with pytest.raises(PromptFailed, match="smaller than min") as refused:
        execute(wrong_value)
    assert (refused.value.kind, refused.value.node_id) == ("validation", "4")

    wrong_model = picture_prompt(tiny_checkpoints["sd15"])
    wrong_model["9"] = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": tiny_checkpoints["sdxl"]}}
    wrong_model["2"]["inputs"]["clip"] = ["9", 1]
    with pytest.raises(PromptFailed, match="shapes") as failed:
        execute(wrong_model)
    assert (failed.value.kind, failed.value.node_id) == ("error", "4")


def test_interrupt(execute, tiny_checkpoints):
    import comfy.model_management

    running = execute.submit(picture_prompt(tiny_checkpoints["sd15"], steps=2000))
    time.sleep(1.0)
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(PromptFailed) as stopped:
        running.result(30)
    assert stopped.value.kind == "interrupted"


def test_shared_checkpoint_notices_a_changed_weight(base, tiny_checkpoints):
    from support.inprocess import PristineCheckpoint

    shared = PristineCheckpoint(tiny_checkpoints["sd15"])
    shared.check()
    with torch.inference_mode():
        next(shared.loaded.model.model.parameters()).add_(1e-3)
    with pytest.raises(AssertionError, match="changed weights"):
        shared.check()
    shared.check()
    handle = shared.loaded.clip.cond_stage_model.clip_l.register_forward_hook(lambda *_: None)
    with pytest.raises(AssertionError, match="left hooks"):
        shared.check()
    handle.remove()


@pytest.mark.slow
def test_unmodified_detection_loads_the_stock_checkpoint(stock_sd15):
    import comfy.supported_models

    from support.inprocess import load_checkpoint

    model, clip, _ = load_checkpoint(stock_sd15)
    assert type(model.model.model_config) is comfy.supported_models.SD15
    assert clip.encode_from_tokens(clip.tokenize("a dog")).shape == (1, 77, 768)
    assert torch.isfinite(clip.encode_from_tokens(clip.tokenize("a dog"))).all()


def test_shared_checkpoint_is_lent_unchanged(any_checkpoint):
    _model, _clip, vae = any_checkpoint
    with torch.inference_mode():
        assert torch.isfinite(vae.decode(torch.zeros(1, 4, 8, 8))).all()
