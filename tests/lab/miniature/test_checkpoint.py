"""One file, read by the stock Load Checkpoint, is the networks that were trained."""
from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from miniature.autoencoder import initialise as initialise_autoencoder
from miniature.autoencoder import new_autoencoder
from miniature.checkpoint import load_latent_encoder, load_networks, load_picture_encoder, save_checkpoint
from miniature.contrastive import Matching
from miniature.models import VOCABULARY, register, untouched_table
from miniature.network import new_networks, new_networks_xl

SPREAD = 0.8
PROMPT = "a photo of a red and blue striped dog wearing a hat in the snow"


@pytest.fixture(scope="module")
def trained(base):
    """(networks with every weight away from its start, autoencoder, loaded checkpoint, file)."""
    import nodes

    register()
    networks, autoencoder = new_networks(3), new_autoencoder()
    initialise_autoencoder(autoencoder)
    with torch.no_grad():
        for parameter in networks.parameters():
            parameter.copy_((parameter + 0.02 * torch.randn_like(parameter)).half().float())
        for parameter in autoencoder.parameters():
            parameter.copy_(parameter.half().float())
    file = base / "models" / "checkpoints" / "miniature_random.safetensors"
    save_checkpoint(networks, autoencoder, SPREAD, file, {"steps": "0"})
    with torch.inference_mode():
        loaded = nodes.CheckpointLoaderSimple().load_checkpoint(file.name)
    yield networks.eval().requires_grad_(False), autoencoder, loaded, file
    file.unlink()


def test_file_is_small_and_detected(trained):
    _, _, (model, _, _), file = trained
    assert type(model.model.model_config).__name__ == "MiniatureSD"
    assert model.model.model_type.name == "EPS"
    assert file.stat().st_size < 25 * 2**20


def test_text_is_encoded_as_in_training(trained):
    networks, _, (_, clip, _), _ = trained
    with torch.inference_mode():
        stock = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))[0][0]
        own = networks["text"](networks["text"].tokens([PROMPT]))
    torch.testing.assert_close(stock, own, atol=2e-3, rtol=2e-3)


def test_untouched_token_rows_are_restored(trained):
    networks, _, (_, clip, _), _ = trained
    table = clip.cond_stage_model.clip_l.transformer.get_input_embeddings().weight.float()
    assert table.shape == (VOCABULARY, 128)
    ids = networks["text"].ids
    torch.testing.assert_close(table[ids], networks["text"].rows, atol=1e-3, rtol=1e-3)
    untouched = torch.ones(VOCABULARY, dtype=torch.bool)
    untouched[ids] = False
    torch.testing.assert_close(table[untouched], untouched_table()[untouched], atol=1e-3, rtol=1e-3)


def test_unet_predicts_as_in_training(trained):
    networks, _, (model, _clip, _), _ = trained
    x, context, t = torch.randn(2, 16, 16, 16), torch.randn(2, 85, 128), torch.tensor([10, 700])
    with torch.inference_mode():
        import comfy.model_management

        comfy.model_management.load_models_gpu([model])
        stock = model.model.diffusion_model(x, t, context=context)
        own = networks["unet"](x, t, context=context)
    assert own.std() > 1e-3
    torch.testing.assert_close(stock, own, atol=2e-3, rtol=2e-3)


def test_latents_have_unit_scale(trained):
    _, autoencoder, (model, _, vae), _ = trained
    pictures = torch.rand(2, 128, 128, 3)
    with torch.inference_mode():
        stock = vae.encode(pictures)
        own = autoencoder["encoder"](pictures.movedim(-1, 1)) / SPREAD
        torch.testing.assert_close(model.model.process_latent_in(stock), own, atol=2e-2, rtol=2e-2)
        assert vae.decode(stock).shape == (2, 128, 128, 3)


def test_stock_sampler_draws_a_picture(trained):
    import nodes

    _, _, (model, clip, vae), _ = trained
    with torch.inference_mode():
        positive, negative = (nodes.CLIPTextEncode().encode(clip, text)[0] for text in (PROMPT, ""))
        empty = {"samples": torch.zeros(1, 4, 16, 16)}
        latent = nodes.KSampler().sample(model, 0, 2, 4.0, "euler", "normal", positive, negative, empty, 1.0)[0]
        picture = nodes.VAEDecode().decode(vae, latent)[0]
    assert latent["samples"].shape == (1, 16, 16, 16)
    assert picture.shape == (1, 128, 128, 3) and picture.isfinite().all()


def test_picture_encoder_travels_in_the_same_file(trained):
    networks, _, _, file = trained
    pictures = torch.rand(2, 3, 64, 64)
    tokens = load_picture_encoder(load_file(file))(pictures)
    assert tokens.shape == (2, 8, 128)
    torch.testing.assert_close(tokens, networks["picture"](pictures), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("new", [new_networks, new_networks_xl])
def test_networks_come_back_from_the_file(trained, tmp_path, new):
    _, autoencoder, _, _ = trained
    networks, again = new(3), new(4)
    save_checkpoint(networks, autoencoder, SPREAD, tmp_path / "file.safetensors", {})
    load_networks(again, load_file(tmp_path / "file.safetensors"))
    for (name, one), (_, other) in zip(networks.named_parameters(), again.named_parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3, msg=name)


def test_twin_is_detected_as_sdxl_with_velocity_and_is_small(trained, base):
    import nodes

    _, autoencoder, _, _ = trained
    file = base / "models" / "checkpoints" / "miniature_twin.safetensors"
    save_checkpoint(new_networks_xl(), autoencoder, SPREAD, file, {})
    try:
        with torch.inference_mode():
            model, clip, _ = nodes.CheckpointLoaderSimple().load_checkpoint(file.name)[:3]
    finally:
        size = file.stat().st_size
        file.unlink()
    assert type(model.model.model_config).__name__ == "MiniatureSDXL"
    assert model.model.model_type.name == "V_PREDICTION"
    assert set(clip.tokenize("a dog")) == {"l", "g"}
    assert size < 25 * 2**20


def test_the_pack_registers_the_classes_in_comfyui():
    import importlib.util
    from pathlib import Path

    from comfy import supported_models

    kept = list(supported_models.models)
    supported_models.models[:] = [c for c in kept if not c.__name__.startswith("Miniature")]
    try:
        file = Path(__file__).parent / "custom_node" / "__init__.py"
        spec = importlib.util.spec_from_file_location("custom_node_under_test", file)
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
        assert {"MiniatureSD", "MiniatureSDXL"} <= {c.__name__ for c in supported_models.models}
    finally:
        supported_models.models[:] = kept


def test_what_matches_texts_and_pictures_is_kept_where_there_is_some(tmp_path):
    networks, autoencoder = new_networks(3), new_autoencoder()
    initialise_autoencoder(autoencoder)
    save_checkpoint(networks, autoencoder, SPREAD, tmp_path / "without.safetensors", {})
    networks["matching"] = Matching()
    save_checkpoint(networks, autoencoder, SPREAD, tmp_path / "with.safetensors", {})
    latents = torch.randn(2, 16, 16, 16)
    with torch.no_grad():
        seen = networks["matching"].pictures(latents)
    again = load_latent_encoder(load_file(tmp_path / "with.safetensors"))
    torch.testing.assert_close(again(latents), seen, atol=1e-2, rtol=1e-2)
    other = new_networks(4)
    other["matching"] = Matching()
    load_networks(other, load_file(tmp_path / "without.safetensors"))
    load_networks(other, load_file(tmp_path / "with.safetensors"))
    with torch.no_grad():
        torch.testing.assert_close(other["matching"].pictures(latents), seen, atol=1e-2, rtol=1e-2)
