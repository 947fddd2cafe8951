"""ViCo's formulas, its image blocks and their files."""
from __future__ import annotations

import comfy.ops
import pytest
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.supported_models import SD15
from safetensors.torch import save_file

from personalize.nodes.families.find import unet_of
from personalize.nodes.papers.vico import maths
from personalize.nodes.papers.vico.blocks import ImageBlocks, layers_at, parameter_shapes
from personalize.nodes.papers.vico.files import metadata_of, read_vico
from support import vico_by_hand
from support.inprocess import dynamic_vram
from tiny.vico import TINY_SD15, official_tensors


def random(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------ masks
MAPS = {"bump": torch.exp(-((torch.arange(64.) - 20) / 7) ** 2)[None], "noise": random(3, 100).abs(),
        "two values": torch.tensor([[0.1, 0.9, 0.9, 0.1]]), "tenths": torch.tensor([[*range(11), 10, 10]]) / 10,
        "one high": torch.tensor([[0., 0., 0., 5.]]), "softmax": random(5, 256, seed=4).mul(3).softmax(-1)}


@pytest.mark.parametrize("name", MAPS)
def test_masks_equal_scikit_image_and_the_authors_loop(name):
    maps = MAPS[name].float()
    assert torch.equal(maths.object_mask(maps, "paper").float(), vico_by_hand.otsu_mask(maps))
    assert torch.equal(maths.object_mask(maps, "released").float(), vico_by_hand.released_mask(maps))
    assert maths.object_mask(maps, "none") is None


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_map_without_contrast_hides_nothing(variant):
    assert maths.object_mask(torch.full((2, 9), 0.25), variant).all()


@pytest.mark.smoke
def test_given_mask_by_share():
    covered = torch.tensor([[0.0, 0.2, 0.3, 0.6], [0.0, 0.0, 0.02, 0.01]])
    assert torch.equal(maths.given_mask(covered, "paper"), covered)
    assert maths.given_mask(covered, "released").tolist() == [[False, False, True, True], [False, False, True, True]]


# ------------------------------------------------------------------------------------------------ attention
@pytest.mark.parametrize("rows, masked", [(3, True), (1, True), (1, False)])
@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.smoke
def test_image_attention_is_equation_5_or_as_released(variant, rows, masked):
    query, key, value = random(3, 10, 16), random(rows, 12, 16, seed=1), random(rows, 12, 16, seed=2)
    mask = (random(rows, 12, seed=3) > 0) if masked else None
    found = maths.attention(query, key, value, 4, mask, variant)
    for row in range(3):
        which = row % rows
        for head in range(4):
            part = slice(4 * head, 4 * head + 4)
            weights = torch.exp(query[row, :, part] @ key[which, :, part].T / 2)
            inside = mask[which].float() if masked else torch.ones(12)
            if variant == "released":
                weights = weights * inside
            weights = weights / weights.sum(-1, keepdim=True) * inside
            torch.testing.assert_close(found[row, :, part], weights @ value[which, :, part])


def test_regularisation_is_the_mean_square_and_moves_only_the_word():
    subject = random(2, 30).abs().requires_grad_()
    end = random(2, 30, seed=1).abs().requires_grad_()
    loss = maths.end_of_text_regularisation(subject, end)
    a, b = subject.detach(), end.detach()
    expected = sum((float(a[i, p] / a[i].max()) - float(b[i, p] / b[i].max())) ** 2
                   for i in range(2) for p in range(30)) / 60
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert subject.grad.abs().sum() > 0 and end.grad is None


# ------------------------------------------------------------------------------------------------ blocks
def test_blocks_stand_where_the_paper_puts_them(sd15, sdxl):
    layers = unet_of(sd15.model).layers
    assert [layer.order for layer in layers_at(layers, "decoder")] == [8, 10, 12, 14]
    assert [layer.block for layer in layers_at(layers, "decoder")] == [("output", i) for i in (4, 6, 8, 10)]
    assert [layer.order for layer in layers_at(layers, "encoder")] == [0, 2, 4]
    assert [layer.order for layer in layers_at(layers, "both")] == [0, 2, 4, 8, 10, 12, 14]
    xl = layers_at(unet_of(sdxl.model).layers, "decoder")
    assert [layer.block for layer in xl] == [("output", 1), ("output", 3), ("output", 5)]
    assert [layer.depth for layer in xl] == [1, 0, 0], "after the last of a block's layers"


def test_sd15_has_the_paper_s_number_of_parameters():
    """51.3 million in Table 1; the authors' files have 51 248 960 in 80 tensors."""
    structure = {"in_channels": 4, "out_channels": 4, "num_res_blocks": [2] * 4, "channel_mult": [1, 2, 4, 4],
                 "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
                 "transformer_depth_output": [1] * 9 + [0] * 3}
    config = SD15({**SD15.unet_config, **structure}).unet_config
    unet = UNetModel(image_size=32, use_spatial_transformer=True, device="meta",
                     operations=comfy.ops.disable_weight_init, **config)
    tensors = dict(ImageBlocks(unet, layers_at(unet_of(unet).layers, "decoder"), device="meta").named_tensors())
    assert tensors.keys() == official_tensors(TINY_SD15).keys() and len(tensors) == 80
    assert sum(parameter.numel() for parameter in tensors.values()) == 51_248_960


def test_blocks_have_the_authors_names(sd15):
    layers = layers_at(unet_of(sd15.model).layers, "decoder")
    own = {name: p.shape for name, p in ImageBlocks(sd15.model, layers).named_tensors()}
    assert own == {name: tensor.shape for name, tensor in official_tensors(TINY_SD15).items()}


def test_blocks_start_as_new_layers_of_pytorch(sd15):
    layers = layers_at(unet_of(sd15.model).layers, "decoder")
    blocks = [ImageBlocks(sd15.model, layers), ImageBlocks(sd15.model, layers)]
    for each in blocks:
        each.draw(torch.Generator().manual_seed(1))
    for (name, first), (_, second) in zip(*(each.state_dict().items() for each in blocks)):
        assert torch.equal(first, second)
        if "norm" in name:
            assert (first == (1 if name.endswith("weight") else 0)).all()
        elif name.endswith("weight"):
            bound = first.shape[1] ** -0.5
            assert first.abs().max() <= bound and first.std() == pytest.approx(bound / 3 ** 0.5, rel=0.1)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_image_block_equals_plain_operations(sd15, variant):
    layers = layers_at(unet_of(sd15.model).layers, "decoder")[-1:]
    blocks = ImageBlocks(sd15.model, layers)
    blocks.draw(torch.Generator().manual_seed(1))
    x, reference, mask = random(2, 9, 32), random(2, 14, 32, seed=1), random(2, 14, seed=2) > 0
    weights = {name.partition("cross_attention.")[2]: p for name, p in blocks.named_tensors()}
    expected = vico_by_hand.image_block(weights, 8, x, reference, mask.float(), variant == "released")
    torch.testing.assert_close(blocks[layers[0]](x, reference, mask, variant), expected, atol=1e-5, rtol=1e-5)
    swapped = blocks[layers[0]](x, reference.flip(0), mask.flip(0), variant, torch.tensor([1, 0]))
    torch.testing.assert_close(swapped, expected, atol=1e-5, rtol=1e-5)


def test_dynamic_vram_leaves_no_block_without_weights(tmp_path, sd15):
    """Drawn, saved, loaded and run; ComfyUI's own layers are without weights until a state dict is loaded."""
    layers = layers_at(unet_of(sd15.model).layers, "decoder")
    x, reference = random(2, 9, 32), random(2, 14, 32, seed=1)

    def made(name: str):
        blocks = ImageBlocks(sd15.model, layers)
        blocks.draw(torch.Generator().manual_seed(1))
        tensors = {key: p.detach().clone() for key, p in blocks.named_tensors()}
        save_file(tensors, tmp_path / name, metadata_of("paper", (), 64, sd15.model))
        loaded = read_vico(tmp_path / name).blocks_for(sd15.model, torch.float32)
        restored = ImageBlocks(sd15.model, layers)
        restored.load_state_dict(blocks.state_dict())
        return tensors, *(each[layers[-1]](x, reference, None, "paper") for each in (blocks, loaded, restored))

    tensors, *expected = made("plain.safetensors")
    with dynamic_vram():
        assert comfy.ops.manual_cast.Linear(2, 2).weight is None
        assert sum(map(len, (parameter_shapes(width) for width in (1280, 640, 640, 320)))) == 80
        found, *results = made("dynamic.safetensors")
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert len(tensors) == 80 and all(map(torch.equal, results, expected))


# ------------------------------------------------------------------------------------------------ files
@pytest.mark.parametrize("prefix", ["", "model."], ids=["as saved", "as the authors load it"])
def test_the_authors_file_loads_with_no_tensor_missing_or_left_over(tmp_path, sd15, prefix):
    tensors = official_tensors(TINY_SD15)
    assert len(tensors) == 80
    torch.save({prefix + name: tensor for name, tensor in tensors.items()}, tmp_path / "cross_attention-399.pt")
    vico = read_vico(tmp_path / "cross_attention-399.pt")
    assert (vico.variant, vico.words, vico.size, vico.text_width) == ("released", (), 512, 768)
    sized = vico.__class__(vico.source, vico.blocks, "released", (), 512, 32)
    blocks = sized.blocks_for(sd15.model, torch.float32)
    own = dict(blocks.named_tensors())
    assert own.keys() == tensors.keys() and all(torch.equal(own[name], tensors[name]) for name in tensors)


def test_own_file_says_how_it_was_trained(tmp_path, sdxl):
    layers = layers_at(unet_of(sdxl.model).layers, "both")
    blocks = ImageBlocks(sdxl.model, layers)
    blocks.draw(torch.Generator().manual_seed(1))
    own = dict(blocks.named_tensors())
    about = metadata_of("none", ("<a>", "<b>"), 64, sdxl.model)
    save_file({name: p.detach() for name, p in own.items()}, tmp_path / "mine.safetensors", about)
    vico = read_vico(tmp_path / "mine.safetensors")
    assert (vico.variant, vico.words, vico.size, vico.text_width) == ("none", ("<a>", "<b>"), 64, 80)
    loaded = vico.blocks_for(sdxl.model, torch.float32)
    assert loaded.layers == layers
    assert all(torch.equal(p, own[name]) for name, p in loaded.named_tensors())


def foreign(tensors):
    return {name.replace("image_cross_attention", "something"): t for name, t in tensors.items()}


@pytest.mark.parametrize("change, message", [
    (foreign, "holds no image blocks"),
    (lambda t: dict(list(t.items())[1:]), "is not whole .look at attn1.to_q.weight."),
    (lambda t: {**t, "diffusion_model.output_blocks.4.1.image_cross_attention.extra": torch.ones(1)},
     "is not whole .look at extra."),
    (lambda t: {n: v.flatten() for n, v in t.items()}, "is not whole"),
    (lambda t: list(t.values()), "damaged or no ViCo file")])
def test_bad_files_are_named(tmp_path, change, message):
    torch.save(change(official_tensors({4: 32})), tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=message) as raised:
        read_vico(tmp_path / "odd.pt")
    assert "odd.pt" in str(raised.value)


def test_file_with_code_is_refused(tmp_path):
    class Harm:
        def __reduce__(self):
            return exec, ("raise SystemExit('ran')",)

    torch.save({"a": Harm()}, tmp_path / "harm.pt")
    with pytest.raises(ValueError, match="could run code when opened"):
        read_vico(tmp_path / "harm.pt")


def test_file_of_another_kind_of_model_is_refused(tmp_path, sd21, sdxl):
    torch.save(official_tensors(TINY_SD15), tmp_path / "x.pt")
    vico = read_vico(tmp_path / "x.pt")
    for model in (sd21.model, sdxl.model):
        with pytest.raises(ValueError, match="x.pt was trained on another kind of model: with text of width 768 and "
                                             r"blocks output 4 \(64\), .* where this model has text of width"):
            vico.blocks_for(model, torch.float32)
