"""The room of model families: what it says of the tiny models, and that no other room knows what it knows."""
from __future__ import annotations

import ast

import comfy_extras.nodes_model_advanced as advanced
import pytest
import torch

from personalize.nodes.families.conditioning import model_inputs
from personalize.nodes.families.find import family_of, unet_of
from personalize.nodes.families.latents import latent_space
from personalize.nodes.families.noise import noise_levels
from personalize.nodes.text.encode import Encoded
from personalize.nodes.training.dataset import encode_pictures
from support.paths import PACK

NODES = PACK / "nodes"
OF_BLOCKS = {"input_blocks", "middle_block", "output_blocks", "transformer_blocks", "attn1", "attn2", "to_q", "to_k",
             "to_v",
             "to_out", "SpatialTransformer", "BasicTransformerBlock", "CrossAttention", "ResBlock", "UNetModel"}


def knows(source: str) -> list[str]:
    """What of a source belongs into the room of families."""
    found = []
    for node in ast.walk(ast.parse(source)):
        imported = [node.module or ""] if isinstance(node, ast.ImportFrom) else (
            [each.name for each in node.names] if isinstance(node, ast.Import) else [])
        found += [name for name in imported if name.startswith("comfy.ldm")]
        name = getattr(node, "attr", getattr(node, "id", None))
        if name in OF_BLOCKS:
            found.append(name)
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Mult, ast.FloorDiv, ast.Mod)):
            found += ["a factor of 8" for side in (node.left,
                                                   node.right) if isinstance(side, ast.Constant) and side.value == 8]
    return found


@pytest.mark.smoke
def test_no_other_room_knows_a_family():
    names = [path.relative_to(NODES).as_posix() for path in NODES.rglob("*.py")]
    found = {name: set(knows((NODES / name).read_text(encoding="utf-8"))) for name in names
             if not name.startswith("families/")}
    assert {name: what for name, what in found.items() if what} == {}


def test_what_looks_inside_knows_no_family_at_all():
    sources = {path.name: path.read_text(encoding="utf-8") for path in (NODES / "recording").glob("*.py")}
    assert not [name for name, source in sources.items() if "unet_of" in source or "attn2" in source]


def test_what_the_rule_forbids_is_seen():
    assert knows("from comfy.ldm.lumina.model import NextDiT\nblock.attn2.to_k(size // 8)") == [
        "comfy.ldm.lumina.model", "to_k", "a factor of 8", "attn2"]
    assert not knows("import comfy.samplers\nstride = max(4, 8)")


def test_the_room_is_under_all_others():
    for path in (NODES / "families").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ImportFrom) and node.level > 1), path.name


@pytest.mark.parametrize("kind, layers, width", [("sd15", 16, 32), ("sdxl", 17, 80)])
@pytest.mark.smoke
def test_a_u_net_is_found(load_checkpoint, kind, layers, width):
    model = load_checkpoint(kind).model
    for family in (family_of(model), unet_of(model.model.diffusion_model)):
        assert (len(family.layers), family.text_width, family.input_channels) == (layers, width, 4)
    assert (latent_space(model).channels, latent_space(model).factor) == (4, 8)
    assert latent_space(model).empty((64, 32)).shape == (1, 4, 8, 4)


def test_what_adapters_may_change(sd15):
    modules = dict(sd15.model.model.named_modules())
    attention, text, whole = (family_of(sd15.model).adaptable(which)
                              for which in ("attention", "text keys and values", "all"))
    assert all(modules[name] is module for name, module in whole.items())
    assert len(attention) == 16 * 2 * 4 and len(text) == 16 * 2
    assert text.keys() < attention.keys() < whole.keys() and all(".attn2.to_" in name for name in text)


def test_another_model_is_refused_by_name(sd15):
    with pytest.raises(ValueError, match="The model Linear is of no family that this pack knows"):
        family_of(torch.nn.Linear(1, 1))


@pytest.mark.parametrize("node", [advanced.ModelSamplingAuraFlow, advanced.ModelSamplingSD3])
def test_flow_noise(sd15, node):
    """Both count timesteps differently, 0…1 and 0…1000; the levels are the same: shift·t / (1 + (shift − 1)·t)."""
    method = "patch_aura" if node is advanced.ModelSamplingAuraFlow else "patch"
    levels = noise_levels(getattr(node(), method)(sd15.model, 3.0)[0])
    numbers = torch.tensor([0, 499, 999])
    sigma, t = levels.sigma(numbers), (numbers + 1) / 1000
    assert torch.allclose(sigma, 3 * t / (1 + 2 * t))
    assert torch.allclose(levels.noise_to_signal(sigma[:2]), sigma[:2] / (1 - sigma[:2]))
    clean, noise, predicted = torch.randn(3, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    noisy, shape = levels.add(clean, noise, sigma), (-1, 1, 1, 1)
    assert torch.allclose(noisy, sigma.view(shape) * noise + (1 - sigma.view(shape)) * clean)
    error = levels.output_error(clean, sigma, predicted)
    assert torch.allclose(error, (noisy - predicted) / sigma.view(shape) - (noise - clean), rtol=1e-3, atol=1e-2)
    assert not levels.output_error(clean, sigma, clean).any()
    drawn = levels.draw(100_000, torch.Generator().manual_seed(0))
    assert (drawn.min(), drawn.max()) == (0, 999) and 0 < levels.sigma(drawn).min() < levels.sigma(drawn).max() == 1


def test_conditionings_run_as_comfyui_runs_them(sdxl):
    """Rows together, or one by one where a conditioning holds more, as CLIP Text Encode SDXL's size does."""
    model, (noisy, cond) = sdxl.model.model, (torch.zeros(2, 4, 8, 16), torch.randn(2, 77, 80))
    pooled = torch.randn(2, 48)
    together = model_inputs(model, Encoded((), cond, pooled).conditioning(), noisy, "cpu")
    apart = model_inputs(model, Encoded((), cond, pooled, ({}, {"width": 640, "crop_w": 32})).conditioning(), noisy,
                         "cpu")
    assert together.keys() == apart.keys() == {"c_crossattn", "y"}
    assert torch.equal(together["c_crossattn"], cond) and torch.equal(apart["c_crossattn"], cond)
    sizes = {"width": 128, "height": 64}
    assert torch.equal(together["y"], model.encode_adm(pooled_output=pooled, **sizes))
    assert torch.equal(apart["y"][:1], together["y"][:1])
    assert torch.equal(apart["y"][1:], model.encode_adm(pooled_output=pooled[1:],
                                                        **sizes | {"width": 640, "crop_w": 32}))


def test_pictures_are_whole_latent_pixels(sd15):
    from support.trainings import subject
    with pytest.raises(
        ValueError, match="have 68 pixels on a side.* 8 times smaller .* set size of Subject to 64 or 72"
    ):
        encode_pictures(sd15.vae, sd15.model, (subject(size=68),), 0)
