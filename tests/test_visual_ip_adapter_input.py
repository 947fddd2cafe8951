"""IP-Adapter's files and pictures: tokens against computations by hand, every shape, a graph, and what is refused."""
from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from personalize.nodes.families.find import unet_of
from personalize.nodes.visual_prompts.ip_adapter_attention import token_attention
from personalize.nodes.visual_prompts.ip_adapter_files import read_ip_adapter
from personalize.nodes.visual_prompts.nodes_ip_adapter import (
    PersonalizeApplyIPAdapter,
    PersonalizeEncodePictureIPAdapter,
)
from personalize.nodes.visual_prompts.tokens import VisualTokens
from support.ip_adapter_by_hand import SD15, TINY_SDXL, tokens_by_hand
from support.ip_adapter_files import PROMPT, official, picture, saved, text_width
from support.pictures_by_hand import cropped, normalised
from tiny import ip_adapter as tiny
from tiny import vision


@pytest.fixture(scope="module")
def clip_vision():
    return vision.load()


# ------------------------------------------------------------------------------------------------------------- tokens
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_tokens_equal_the_computation_by_hand(kind, sd15, clip_vision, tmp_path):
    content = official(sd15.model, SD15, kind)
    adapter = read_ip_adapter(saved(content, tmp_path / "a.bin"))
    images = torch.cat([picture(seed=1), picture(seed=2)])
    with torch.inference_mode():
        got = PersonalizeEncodePictureIPAdapter.execute(adapter, clip_vision, images, "crop", "one per image").args[0]
        pixels = torch.cat([normalised(cropped(image, vision.SIDE, torchvision=False), clip_vision.image_mean,
                                       clip_vision.image_std) for image in images])
        _, before_last, embeds, _ = clip_vision.model(pixel_values=pixels, intermediate_output=-2)
        nothing = clip_vision.model(pixel_values=torch.zeros(1, 3, vision.SIDE, vision.SIDE), intermediate_output=-2)
    seen = embeds if kind == "base" else before_last
    expected = tokens_by_hand(kind, content["image_proj"], seen.float())
    empty = torch.zeros(1, vision.PROJECTED) if kind == "base" else nothing[1].float()
    assert got.source == "IP-Adapter" and got.vectors.dtype == torch.float32
    assert torch.allclose(got.vectors, expected, atol=1e-5)
    assert torch.allclose(got.negative, tokens_by_hand(kind, content["image_proj"], empty), atol=1e-5)
    assert not torch.allclose(got.negative, got.vectors[:1], atol=0.01)


def test_several_pictures(sd15, clip_vision, tmp_path):
    adapter = read_ip_adapter(saved(official(sd15.model, SD15, "plus"), tmp_path / "a.safetensors"))
    images = torch.cat([picture(seed=1), picture(seed=2)])
    with torch.inference_mode():
        each, average, joined = (
            PersonalizeEncodePictureIPAdapter.execute(adapter, clip_vision, images, "crop", how).args[0]
            for how in ("one per image", "average", "concatenate"))
        alone = PersonalizeEncodePictureIPAdapter.execute(adapter, clip_vision, images[1:], "crop", "average").args[0]
    assert each.vectors.shape[0] == 2 and torch.allclose(each.vectors[1:], alone.vectors, atol=1e-5)
    assert torch.allclose(average.vectors[0], (each.vectors[0] + each.vectors[1]) / 2, atol=1e-6)
    assert torch.equal(joined.vectors[0], torch.cat([each.vectors[0], each.vectors[1]]))
    assert joined.negative.shape == each.negative.shape == (1, 5, 32)


# ------------------------------------------------------------------------------------------------------------ refused
def test_foreign_files_are_refused(sd15, tmp_path):
    content = official(sd15.model, SD15, "base")
    whole = saved(content, tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[:len(whole) // 2])
    torch.save(content, tmp_path / "whole.bin")
    (tmp_path / "half.bin").write_bytes((tmp_path / "whole.bin").read_bytes()[:5000])
    (tmp_path / "page.bin").write_text("<html>not found</html>")
    save_file({"lora_up.weight": torch.zeros(2, 2)}, tmp_path / "lora.safetensors")
    face = {**content["ip_adapter"], "0.to_q_lora.down.weight": torch.zeros(2, 2)}
    saved(dict(content, ip_adapter=face), tmp_path / "face.safetensors")
    lacking = {name: tensor for name, tensor in content["image_proj"].items() if name != "norm.bias"}
    saved(dict(content, image_proj=lacking), tmp_path / "lacking.safetensors")
    fewer = {name: tensor for name, tensor in content["ip_adapter"].items() if not name.startswith("5.")}
    saved(dict(content, ip_adapter=fewer), tmp_path / "fewer.safetensors")
    odd = {**content["ip_adapter"], "3.to_v_ip.weight": torch.zeros(3, 3)}
    saved(dict(content, ip_adapter=odd), tmp_path / "odd.safetensors")
    for name, message in {
            "half.safetensors": "half.safetensors is damaged or no IP-Adapter file",
            "half.bin": "half.bin is damaged", "page.bin": "page.bin is damaged",
            "lora.safetensors": "holds no IP-Adapter: found lora_up, expected image_proj",
            "face.safetensors": "FaceID", "lacking.safetensors": "lacking.safetensors is damaged",
            "fewer.safetensors": "is incomplete", "odd.safetensors": "odd.safetensors is damaged"}.items():
        with pytest.raises(ValueError, match=message):
            read_ip_adapter(tmp_path / name)


def test_what_does_not_belong_together_is_refused(sd15, sdxl, clip_vision, tmp_path):
    for_xl = read_ip_adapter(saved(official(sdxl.model, TINY_SDXL, "base"), tmp_path / "xl.safetensors"))
    for_15 = read_ip_adapter(saved(official(sd15.model, SD15, "base"), tmp_path / "sd15.safetensors"))
    tokens = VisualTokens(torch.zeros(1, 4, text_width(sd15.model)), "ELITE")
    before = dict(sd15.model.model_options["transformer_options"])
    with pytest.raises(ValueError, match=r"xl.safetensors is made for .* \(17 layers, text width 80\) but this model "
                                         r"is .* \(16 layers, text width 32\); choose the IP-Adapter file"):
        token_attention(sd15.model, for_xl, tokens, 1.0)
    with pytest.raises(ValueError, match="come from ELITE and have width 32, but xl.safetensors takes those of IP-Ad"):
        PersonalizeApplyIPAdapter.execute(sdxl.model, for_xl, tokens, 1.0, 0.0, 1.0)
    assert sd15.model.model_options["transformer_options"] == before
    wide = tiny.state_dict("base", 1024, 32, [layer.channels for layer in unet_of(sd15.model).layers])
    other = read_ip_adapter(saved(wide, tmp_path / "wide.safetensors"))
    with pytest.raises(ValueError, match="gives vectors of width 24 but wide.safetensors needs 1024; load ViT-H/14"):
        PersonalizeEncodePictureIPAdapter.execute(other, clip_vision, picture(), "crop", "average")
    with pytest.raises(ValueError, match="clip_vision is missing"):
        PersonalizeEncodePictureIPAdapter.execute(for_15, None, picture(), "crop", "average")


def test_pictures_of_every_shape(sd15, clip_vision, tmp_path):
    adapter = read_ip_adapter(saved(official(sd15.model, SD15, "plus"), tmp_path / "a.safetensors"))

    def tokens(image, fit="crop"):
        with torch.inference_mode():
            return PersonalizeEncodePictureIPAdapter.execute(adapter, clip_vision, image, fit,
                                                             "average").args[0].vectors

    for image in (picture(1, 1), picture(1, 3000), picture(3000, 2), picture(64, 64, 1)):
        assert tokens(image).isfinite().all()
        assert tokens(image, "squash").isfinite().all()
    assert tokens(picture(4320, 7680)).isfinite().all()
    see_through = torch.cat([picture(seed=3), torch.zeros(1, 70, 90, 1)], -1)
    assert torch.equal(tokens(see_through), tokens(torch.full((1, 70, 90, 3), 0.5)))
    opaque = torch.cat([picture(seed=3), torch.ones(1, 70, 90, 1)], -1)
    assert torch.equal(tokens(opaque), tokens(picture(seed=3)))
    for bad, message in ((picture(channels=2), "2 channels"), (picture() * torch.nan, "not numbers"),
                         (torch.zeros(0, 8, 8, 3), "holds no picture"), (torch.zeros(8, 8, 3), "holds no picture")):
        with pytest.raises(ValueError, match=message):
            tokens(bad)


# ------------------------------------------------------------------------------------------------------------ in graph
def test_nodes_in_a_graph(execute, sd15, base, tiny_checkpoints):
    from safetensors.torch import save_file as save

    for folder in ("ipadapter", "clip_vision"):
        (base / "models" / folder).mkdir(exist_ok=True)
    saved(official(sd15.model, SD15, "base"), base / "models" / "ipadapter" / "graph-test.safetensors")
    save(vision.state_dict(), base / "models" / "clip_vision" / "tiny.safetensors")
    prompt = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": tiny_checkpoints["sd15"]}},
        "2": {"class_type": "PersonalizeLoadIPAdapter", "inputs": {"file": "graph-test.safetensors"}},
        "3": {"class_type": "CLIPVisionLoader", "inputs": {"clip_name": "tiny.safetensors"}},
        "4": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 48, "batch_size": 1, "color": 0x336699}},
        "5": {"class_type": "PersonalizeEncodePictureIPAdapter", "inputs": {
            "ip_adapter": ["2", 0], "clip_vision": ["3", 0], "image": ["4", 0], "fit": "crop", "combine": "average"}},
        "6": {"class_type": "PersonalizeApplyIPAdapter", "inputs": {
            "model": ["1", 0], "ip_adapter": ["2", 0], "visual_tokens": ["5", 0], "strength": 1.0,
            "start_percent": 0.0, "end_percent": 1.0}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": PROMPT}},
        "8": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "9": {"class_type": "KSampler", "inputs": {
            "model": ["6", 0], "positive": ["7", 0], "negative": ["7", 0], "latent_image": ["8", 0], "seed": 1,
            "steps": 2, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}}}
    got = execute(prompt, get={"latent": ["9", 0], "tokens": ["5", 0]}).values
    assert got["latent"]["samples"].isfinite().all() and got["tokens"].vectors.shape == (1, 4, 32)
    prompt["6"]["inputs"]["strength"] = 0.0
    assert not torch.equal(execute(prompt, get={"latent": ["9", 0]}).values["latent"]["samples"],
                           got["latent"]["samples"])
    from support.failures import PromptFailed

    prompt["2"]["inputs"]["file"] = "absent.safetensors"
    with pytest.raises(PromptFailed, match="There is no file 'absent.safetensors' in .*ipadapter"):
        execute(prompt, get={"latent": ["9", 0]})
