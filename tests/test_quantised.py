"""Quantised models: words and adapters learn on them; only their own weights cannot change."""
from __future__ import annotations

import comfy.model_management
import comfy.sd
import folder_paths
import pytest
import torch
from comfy.quant_ops import QuantizedTensor

from personalize.nodes.training.parts.embedding import EmbeddingPart
from personalize.nodes.training.parts.weights import AdapterPart, UNetPart
from personalize.nodes.training.plan import Settings
from support.quantised import OLDER, quantise
from support.trainings import gradients, train

PARTS = (EmbeddingPart(), AdapterPart(rank=2))


@torch.inference_mode()
def load(path, **options):
    return comfy.sd.load_checkpoint_guess_config(str(path), output_vae=False, **options)


def stored(module) -> dict[str, torch.Tensor]:
    """What the weights are made of."""
    made_of = {name: weight._qdata if isinstance(weight, QuantizedTensor) else weight
               for name, weight in module.named_parameters()}
    return {name: values.flatten().view(torch.uint8).clone() for name, values in made_of.items()}


def unchanged(module, before) -> bool:
    after = stored(module)
    return after.keys() == before.keys() and all(torch.equal(after[name], values) for name, values in before.items())


@pytest.fixture
def made(tiny_checkpoints, tmp_path):
    """Call with a kind of quantisation: MODEL with it, and one with the same values written out."""
    source = folder_paths.get_full_path("checkpoints", tiny_checkpoints["z_image"])

    def make(kind, **part):
        paths = tmp_path / "quantised.safetensors", tmp_path / "written out.safetensors"
        quantise(source, *paths, kind, **part)
        return paths

    return make


@pytest.mark.parametrize("kind, native, alike", [
    ("float8_e4m3fn", False, 1 - 1e-4), ("float8_e4m3fn", True, 0.98), (OLDER, False, 1 - 1e-4),
    pytest.param("int8_tensorwise", False, 0.98, marks=pytest.mark.newer)])
def test_words_and_adapters_are_trained_through_them(z_image, made, monkeypatch, kind, native, alike):
    """The gradient is that of the values that the weights stand for; where ComfyUI multiplies in fp8, as on newer
    graphics cards, or in int8, up to the rounding of what is multiplied."""
    monkeypatch.setattr(comfy.model_management, "supports_fp8_compute", lambda *_: native)
    quantised, written_out = (z_image._replace(model=load(path, output_clip=False)[0]) for path in made(kind))
    denoiser = quantised.model.model.diffusion_model
    weight = denoiser.layers[0].attention.qkv
    assert isinstance(weight.weight, QuantizedTensor)
    assert weight._full_precision_mm == (not native and kind != "int8_tensorwise")
    before = stored(denoiser)
    for part in (*PARTS, AdapterPart("LoHa", 2)) if kind == OLDER else PARTS:
        found, expected = (gradients(model, {"parts": (part,)}) for model in (quantised, written_out))
        assert expected.norm() > 0 and torch.cosine_similarity(found, expected, 0) > alike
    assert unchanged(denoiser, before)


def test_a_quantised_text_encoder_is_trained_through(z_image, made):
    (_, quantised, *_), (_, written_out, *_) = map(load, made("float8_e4m3fn", part="cond_stage_model."))
    text = quantised.cond_stage_model
    before = stored(text)
    assert sum(isinstance(weight, QuantizedTensor) for weight in text.parameters()) == 21
    found, expected = (gradients(z_image._replace(clip=clip), {}) for clip in (quantised, written_out))
    assert expected.norm() > 0 and torch.cosine_similarity(found, expected, 0) > 1 - 1e-4
    assert unchanged(text, before)


@pytest.mark.parametrize("stored_as", ["with scales", "as it is"])
def test_the_weights_themselves_cannot_change(z_image, made, stored_as):
    path, _ = made("float8_e4m3fn")
    options = {} if stored_as == "with scales" else {"model_options": {"dtype": torch.float8_e4m3fn}}
    path = path if stored_as == "with scales" else folder_paths.get_full_path("checkpoints", "z_image.safetensors")
    model = load(path, output_clip=False, **options)[0]
    with pytest.raises(ValueError, match="by less than lies between two of the values .* or an adapter, for which the"):
        train(z_image._replace(model=model), Settings(steps=1), parts=(UNetPart(),))
