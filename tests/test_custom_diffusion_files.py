"""Custom Diffusion's files of other programs: written here in each layout, they make the model whose weights are set by
hand."""
from __future__ import annotations

from pathlib import Path

import folder_paths
import pytest
import torch
from safetensors.torch import save_file

from personalize.nodes.training.custom_diffusion_files import concepts, differences, read_delta
from support.failures import PromptFailed
from support.trainings import sample

# Blocks with attention of Stable Diffusion 1.x and 2.x: as CompVis and as diffusers call them.
BLOCKS = {**{f"input_blocks.{3 * side + place + 1}.1": f"down_blocks.{side}.attentions.{place}"
             for side in range(3) for place in range(2)}, "middle_block.1": "mid_block.attentions.0",
          **{f"output_blocks.{3 * side + place}.1": f"up_blocks.{side}.attentions.{place}"
             for side in range(1, 4) for place in range(3)}}
ENDINGS = [f"transformer_blocks.0.attn2.{part}.weight" for part in ("to_k", "to_v")]
NEAR = {"rtol": 0, "atol": 2e-5}


@pytest.fixture(scope="module")
def by_hand(load_checkpoint):
    """(model, clip, vae) whose weights tests set."""
    return load_checkpoint("sd15")


def weights_of(model) -> dict[str, torch.Tensor]:
    """The U-Net's own tensors, to be looked at and changed."""
    return {name: weight.detach() for name, weight in model.model.diffusion_model.named_parameters()}


@pytest.fixture(scope="module")
def learned(by_hand):
    """Name in CompVis behind "diffusion_model." → weight, as after a training."""
    draw = torch.Generator().manual_seed(1)
    unet = weights_of(by_hand[0])
    wanted = [f"{block}.{ending}" for block in BLOCKS for ending in ENDINGS]
    return {name: unet[name] + 0.3 * unet[name].std() * torch.randn(unet[name].shape, generator=draw)
            for name in wanted}


def in_diffusers(name: str) -> str:
    block = next(block for block in BLOCKS if name.startswith(f"{block}."))
    return BLOCKS[block] + name.removeprefix(block)


WIDTH = 32  # of the tiny text encoder


def rows(count):
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(2))


def of_scripts(folder, learned):
    torch.save({"unet": {in_diffusers(name): torch.nn.Parameter(weight) for name, weight in learned.items()},
                "modifier_token": {"<new1>": rows(2)[0], "<new2>": rows(2)[1]}}, folder / "delta.bin")
    return folder / "delta.bin"


def of_compvis(folder, learned):
    state = {f"model.diffusion_model.{name}": weight for name, weight in learned.items()}
    torch.save({"state_dict": {**state, "embed": rows(2)}}, folder / "delta_epoch=000000.ckpt")
    return folder / "delta_epoch=000000.ckpt"


def of_diffusers(folder, learned, ending):
    def name_of(name):
        layer, part, kind = in_diffusers(name).rsplit(".", 2)
        return f"{layer}.processor.{part}_custom_diffusion.{kind}"

    weights = {name_of(name): weight.contiguous() for name, weight in learned.items()}
    path = folder / f"pytorch_custom_diffusion_weights.{ending}"
    if ending == "bin":
        torch.save({**weights, "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor": {}}, path)
        for number, row in enumerate(rows(2), start=1):
            torch.save({f"<new{number}>": row}, folder / f"<new{number}>.bin")
    else:
        save_file(weights, path)
        for number, row in enumerate(rows(2), start=1):
            save_file({f"<new{number}>": row}, folder / f"<new{number}>.safetensors")
    return path


LAYOUTS = {"scripts": of_scripts, "CompVis": of_compvis,
           "diffusers, pickled": lambda folder, learned: of_diffusers(folder, learned, "bin"),
           "diffusers": lambda folder, learned: of_diffusers(folder, learned, "safetensors")}


def set_by_hand(by_hand, weights) -> torch.Tensor:
    """What the denoiser draws with these weights in its own tensors."""
    unet = weights_of(by_hand[0])
    before = {name: unet[name].clone() for name in weights}
    with torch.inference_mode():
        for name, weight in weights.items():
            unet[name].copy_(weight)
        drawn = sample(*by_hand[:2])
        for name, weight in before.items():
            unet[name].copy_(weight)
    return drawn


def drawn_with(checkpoint, path, clip=None):
    import comfy.sd

    lora = differences(read_delta(path), checkpoint[0], clip)
    model, changed = comfy.sd.load_lora_for_models(checkpoint[0], clip, lora, 1.0, 1.0)
    return sample(model, changed or checkpoint[1])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_makes_the_model_of_its_weights(sd15, by_hand, learned, tmp_path, layout):
    expected, plain = set_by_hand(by_hand, learned), sample(*sd15[:2])
    path = LAYOUTS[layout](tmp_path, learned)
    torch.testing.assert_close(drawn_with(sd15, path), expected, **NEAR)
    assert (expected - plain).abs().max() > 1e-2
    words = concepts(read_delta(path), path, sd15[1], [], ["cat", "wooden pot"])
    assert [(each.placeholder, each.class_words) for each in words] == [("<new1>", "cat"), ("<new2>", "wooden pot")]
    assert torch.equal(torch.cat([each.vectors["clip_l"] for each in words]), rows(2))


@pytest.mark.parametrize("compvis", [False, True])
def test_compressed_files_are_the_base_and_a_product(sd15, by_hand, learned, tmp_path, compvis):
    unet, parts, expected = weights_of(by_hand[0]), {}, {}
    for name, weight in learned.items():
        u, s, v = torch.linalg.svd(weight - unet[name])
        rank = 0 if name == next(iter(learned)) else 3
        named = f"model.diffusion_model.{name}" if compvis else in_diffusers(name)
        parts[named] = {"u": (u[:, :rank] * s[:rank]).clone(), "v": v[:rank].clone()}
        expected[name] = unet[name] + parts[named]["u"] @ parts[named]["v"]
    content = {"state_dict": {**parts, "embed": rows(1)}} if compvis else {"unet": parts, "modifier_token": {}}
    torch.save(content, tmp_path / "compressed_delta.bin")
    torch.testing.assert_close(drawn_with(sd15, tmp_path / "compressed_delta.bin"), set_by_hand(by_hand, expected),
                               **NEAR)


def test_queries_outputs_and_biases_that_were_trained_are_read_too(sd15, by_hand, tmp_path):
    draw, unet = torch.Generator().manual_seed(3), weights_of(by_hand[0])
    parts = ("to_q.weight", "to_out.0.weight", "to_out.0.bias")
    learned = {name: unet[name] + 0.1 * torch.randn(unet[name].shape, generator=draw)
               for name in (f"middle_block.1.transformer_blocks.0.attn2.{part}" for part in parts)}
    scripts = of_scripts(tmp_path, learned)
    torch.save({"mid_block.attentions.0.transformer_blocks.0.attn2.processor." + new: learned[old] for new, old in zip(
        ("to_q_custom_diffusion.weight", "to_out_custom_diffusion.0.weight", "to_out_custom_diffusion.0.bias"),
        learned)}, tmp_path / "pytorch_custom_diffusion_weights.bin")
    expected = set_by_hand(by_hand, learned)
    for path in (scripts, tmp_path / "pytorch_custom_diffusion_weights.bin"):
        torch.testing.assert_close(drawn_with(sd15, path), expected, **NEAR)


def test_a_trained_text_encoder_changes_the_clip(sd15, by_hand, learned, tmp_path):
    """Of diffusers' scripts: the whole encoder, with the words behind its vocabulary."""
    prefix = "clip_l.transformer."
    ours = {name.removeprefix(prefix): weight for name, weight in by_hand[1].cond_stage_model.state_dict().items()
            if name.startswith(f"{prefix}text_model.")}
    draw = torch.Generator().manual_seed(4)
    theirs = {name: weight + 0.05 * torch.randn(weight.shape, generator=draw) for name, weight in ours.items()}
    table = "text_model.embeddings.token_embedding.weight"
    content = {"unet": {in_diffusers(name): weight for name, weight in learned.items()}, "modifier_token": {},
               "text_encoder": {**theirs, table: torch.cat([theirs[table], rows(2)]),
                                "text_model.embeddings.position_ids": torch.arange(77)[None]}}
    torch.save(content, tmp_path / "delta.bin")
    found = drawn_with(sd15, tmp_path / "delta.bin", sd15[1])
    state = by_hand[1].cond_stage_model.state_dict()
    before = {name: state[prefix + name].clone() for name in theirs}
    with torch.inference_mode():
        for name, weight in theirs.items():
            state[prefix + name].copy_(weight)
        expected = set_by_hand(by_hand, learned)
        for name, weight in before.items():
            state[prefix + name].copy_(weight)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)
    assert (expected - set_by_hand(by_hand, learned)).abs().max() > 1e-2


def test_words_of_sdxl_are_pairs(tmp_path):
    torch.save({"unet": {"x": torch.ones(2, 2)}, "modifier_token": {"<new1>": [torch.ones(768), torch.ones(1280)]}},
               tmp_path / "delta.bin")
    one, = concepts(read_delta(tmp_path / "delta.bin"), tmp_path / "delta.bin", None, ["<my-cat>"], [])
    assert one.placeholder == "<my-cat>" and {key: rows.shape for key, rows in one.vectors.items()} == {
        "clip_l": (1, 768), "clip_g": (1, 1280)}


# ------------------------------------------------------------------------------------------------ refused
def test_a_delta_of_another_base_is_refused(sd21, sdxl, z_image, learned, tmp_path):
    path = of_scripts(tmp_path, learned)
    message = r"delta.bin was trained on another base than this MODEL: .*to_k.weight is \(\d+, \d+\) where the MODEL's"
    with pytest.raises(ValueError, match=message):
        differences(read_delta(path), sd21[0])
    with pytest.raises(ValueError, match="delta.bin was trained on another base than this MODEL: there is no down_bl"):
        differences(read_delta(path), sdxl[0])
    with pytest.raises(ValueError, match="is no U-Net with text cross-attention; use SD1.x, SD2.x or SDXL"):
        differences(read_delta(path), z_image[0])
    torch.save({"state_dict": {"model.diffusion_model.nowhere.weight": torch.ones(2, 2)}}, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match="there is no diffusion_model.nowhere.weight in the MODEL; load the checkpo"):
        differences(read_delta(tmp_path / "x.ckpt"), sd21[0])


class Runs:
    def __reduce__(self):
        return Path.touch, (Path("it-ran"),)


@pytest.mark.parametrize("content, message", [
    ({"a": torch.ones(3)}, "is no Custom Diffusion file: found a, expected unet, state_dict or"),
    ({"unet": {"a": 3}}, "is damaged or no Custom Diffusion file"),
    ({"unet": {"a": {"u": torch.ones(3, 2), "v": torch.ones(3, 4)}}}, "is damaged or no Custom Diffusion file"),
    ({"unet": {"a": torch.full((2, 2), torch.nan)}}, "holds values that are not numbers"),
    ({"unet": {"a": torch.ones(2, 2)}, "modifier_token": {"<a>": [1, 2, 3]}}, "is damaged or no"),
    ({"state_dict": {"a": torch.ones(2, 2), "embed": "text"}}, "is damaged or no"),
    ({"unet": {"a": Runs()}}, "is a pickle that holds more than plain tensors and could run code")])
def test_what_is_no_such_file_is_said_and_nothing_runs(content, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "delta.bin")
    with pytest.raises(ValueError, match=message):
        read_delta(tmp_path / "delta.bin")
    assert not Path("it-ran").exists()


# ------------------------------------------------------------------------------------------------ in the graph
def graph(**inputs):
    return {"c": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15.safetensors"}},
            "d": {"class_type": "PersonalizeLoadCustomDiffusion", "inputs": {
                "model": ["c", 0], "file": "cd/delta.bin", "placeholder": "", "class_words": "cat", **inputs}}}


def test_the_node_gives_model_words_and_lora(execute, tiny_checkpoints, learned):
    folder = Path(folder_paths.get_folder_paths("loras")[0]) / "cd"
    folder.mkdir(parents=True, exist_ok=True)
    path = of_scripts(folder, learned)
    get = {name: ["d", slot] for slot, name in enumerate(("model", "concept", "lora", "clip"))}
    values = execute(graph(clip=["c", 1]), get).values
    assert len(values["lora"]) == len(learned) and all(name.endswith(".diff") for name in values["lora"])
    assert len(values["model"].patches) == len(learned)
    assert [(each.placeholder, each.class_words) for each in values["concept"]] == [("<new1>", "cat"), ("<new2>", "")]
    renamed = execute(graph(placeholder="<my-cat>, <my-pot>", clip=["c", 1]), get).values
    assert [each.placeholder for each in renamed["concept"]] == ["<my-cat>", "<my-pot>"] and renamed["clip"]
    with pytest.raises(PromptFailed, match="placeholder names 3 words, but delta.bin holds 2; write as many"):
        execute(graph(placeholder="<a1>, <a2>, <a3>", clip=["c", 1]), get)
    path.unlink()
