"""IP-Adapter: tokens, attention and files against computations by hand; beside other patches; what is refused."""
from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from personalize.nodes.attention.layers import attention_layers
from personalize.nodes.visual_prompts.added_attention import with_added_attention
from personalize.nodes.visual_prompts.ip_adapter_attention import token_attention
from personalize.nodes.visual_prompts.ip_adapter_files import read_ip_adapter
from personalize.nodes.visual_prompts.nodes_ip_adapter import ApplyIPAdapter, EncodePictureIPAdapter
from personalize.nodes.visual_prompts.pictures import checked, pixel_values
from personalize.nodes.visual_prompts.tokens import VisualTokens
from support import companions
from support.ip_adapter_by_hand import SD15, TINY_SDXL, added_by_hand, blocks_in_file_order, tokens_by_hand
from support.inprocess import load_half
from support.sampling import difference, encoded, guided, sample
from tiny import ip_adapter as tiny
from tiny import vision

TABLES = {"sd15": SD15, "sdxl": TINY_SDXL}
PROMPT = "a dog on the beach"
CLOSE = 1e-5


def text_width(model) -> int:
    return model.model.model_config.unet_config["context_dim"]


def official(model, table, kind: str, seed: int = 0):
    """Content of a file for this model."""
    unet = model.get_model_object("diffusion_model")
    channels = [block.attn2.to_q.weight.shape[0] for _, _, block in blocks_in_file_order(unet, table)]
    seen = vision.PROJECTED if kind == "base" else vision.WIDTH
    return tiny.state_dict(kind, seen, text_width(model), channels, seed)


def saved(content, path):
    if path.suffix == ".bin":
        torch.save(content, path)
    else:
        save_file(tiny.flat(content), path)
    return path


@pytest.fixture(params=sorted(TABLES))
def family(request):
    """(model, clip, order of the files' pairs) of SD1.5 and of SDXL."""
    checkpoint = request.getfixturevalue(request.param)
    return checkpoint.model, checkpoint.clip, TABLES[request.param]


@pytest.fixture(scope="module")
def clip_vision():
    return vision.load()


@pytest.fixture
def adapted(family, tmp_path):
    """(model, positive, negative, table, content, adapter, tokens of two pictures) of a plus file."""
    model, clip, table = family
    content = official(model, table, "plus")
    adapter = read_ip_adapter(saved(content, tmp_path / "plus.safetensors"))
    draw = torch.Generator().manual_seed(5)
    tokens = VisualTokens(torch.randn(2, 5, adapter.token_width, generator=draw), "IP-Adapter",
                          torch.randn(1, 5, adapter.token_width, generator=draw))
    return model, encoded(clip, PROMPT), encoded(clip, "blurry"), table, content, adapter, tokens


def picture(height=70, width=90, channels=3, seed=0):
    return torch.rand(1, height, width, channels, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------------------- tokens
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_tokens_equal_the_computation_by_hand(kind, sd15, clip_vision, tmp_path):
    content = official(sd15.model, SD15, kind)
    adapter = read_ip_adapter(saved(content, tmp_path / "a.bin"))
    images = torch.cat([picture(seed=1), picture(seed=2)])
    with torch.inference_mode():
        got = EncodePictureIPAdapter.execute(adapter, clip_vision, images, "crop", "one per image").args[0]
        stock = clip_vision.encode_image(images)
        nothing = clip_vision.model(pixel_values=torch.zeros(1, 3, vision.SIDE, vision.SIDE), intermediate_output=-2)
    key = "image_embeds" if kind == "base" else "penultimate_hidden_states"
    expected = tokens_by_hand(kind, content["image_proj"], stock[key].float())
    empty = torch.zeros(1, vision.PROJECTED) if kind == "base" else nothing[1].float()
    assert got.source == "IP-Adapter" and got.vectors.dtype == torch.float32
    assert torch.allclose(got.vectors, expected, atol=1e-5)
    assert torch.allclose(got.negative, tokens_by_hand(kind, content["image_proj"], empty), atol=1e-5)
    assert not torch.allclose(got.negative, got.vectors[:1], atol=0.01)


def test_several_pictures(sd15, clip_vision, tmp_path):
    adapter = read_ip_adapter(saved(official(sd15.model, SD15, "plus"), tmp_path / "a.safetensors"))
    images = torch.cat([picture(seed=1), picture(seed=2)])
    with torch.inference_mode():
        each, average, joined = (EncodePictureIPAdapter.execute(adapter, clip_vision, images, "crop", how).args[0]
                                 for how in ("one per image", "average", "concatenate"))
        alone = EncodePictureIPAdapter.execute(adapter, clip_vision, images[1:], "crop", "average").args[0]
    assert each.vectors.shape[0] == 2 and torch.allclose(each.vectors[1:], alone.vectors, atol=1e-5)
    assert torch.allclose(average.vectors[0], (each.vectors[0] + each.vectors[1]) / 2, atol=1e-6)
    assert torch.equal(joined.vectors[0], torch.cat([each.vectors[0], each.vectors[1]]))
    assert joined.negative.shape == each.negative.shape == (1, 5, 32)


# ---------------------------------------------------------------------------------------------------------- attention
def test_pairs_go_to_the_layers_they_were_trained_for(family, tmp_path):
    model, _, table = family
    content = official(model, table, "base")
    adapter = read_ip_adapter(saved(content, tmp_path / "a.safetensors"))
    unet = model.get_model_object("diffusion_model")
    expected = [(block, depth) for block, depth, _ in blocks_in_file_order(unet, table)]
    placed = adapter.layers_of(model)
    assert [(layer.block, layer.depth) for layer in placed] == expected
    for number, (key, value) in enumerate(placed.values()):
        assert torch.equal(key, content["ip_adapter"][f"{2 * number + 1}.to_k_ip.weight"])
        assert torch.equal(value, content["ip_adapter"][f"{2 * number + 1}.to_v_ip.weight"])


@pytest.mark.parametrize("weight", [1.0, 0.4])
def test_sampling_equals_hooks_by_hand(adapted, weight):
    model, positive, negative, table, content, adapter, tokens = adapted
    patched = ApplyIPAdapter.execute(model, adapter, tokens, weight, 0.0, 1.0).args[0]
    got = sample(patched, positive, negative, batch=2)
    by_row = [tokens.negative[0], tokens.negative[0], tokens.vectors[0], tokens.vectors[1]]  # ComfyUI: negative first
    with added_by_hand(model, table, content, by_row, weight):
        expected = sample(model, positive, negative, batch=2)
    assert difference(got, expected) < CLOSE
    assert difference(got, sample(model, positive, negative, batch=2)) > 0.01


def test_dual_guidance_runs_the_negative_first(adapted):
    """DualCFGGuider gives the model negative, second and first positive; the U-Net gets the rows in reverse."""
    from comfy_extras.nodes_custom_sampler import DualCFGGuider

    model, positive, negative, table, content, adapter, tokens = adapted

    def drawn(model):
        return guided(DualCFGGuider.execute(model, positive, negative, negative, 5.0, 2.0, "regular").args[0], 2)

    got = drawn(ApplyIPAdapter.execute(model, adapter, tokens, 1.0, 0.0, 1.0).args[0])
    with added_by_hand(model, table, content, [tokens.vectors[0], tokens.vectors[0], tokens.negative[0]], 1.0):
        expected = drawn(model)
    assert difference(got, expected) < CLOSE and difference(got, drawn(model)) > 0.01


@pytest.mark.parametrize("node", ["SelfAttentionGuidance", "PerpNeg"])
def test_nodes_that_run_a_negative_prompt_alone(adapted, execute, node):
    """There it stands where the positive one does otherwise: SAG's own negative, Perp-Neg's empty prompt."""
    import nodes

    model, positive, negative, table, content, adapter, tokens = adapted
    inputs = {"SelfAttentionGuidance": (0.5, 2.0), "PerpNeg": (negative, 1.0)}[node]

    def drawn(model):
        return sample(nodes.NODE_CLASS_MAPPINGS[node].execute(model, *inputs).args[0], positive, negative)

    got = drawn(ApplyIPAdapter.execute(model, adapter, tokens, 1.0, 0.0, 1.0).args[0])
    by_row = {2: [tokens.negative[0], tokens.vectors[0]], 1: [tokens.negative[0]]}
    with added_by_hand(model, table, content, by_row, 1.0):
        expected = drawn(model)
    assert difference(got, expected) < CLOSE and difference(got, drawn(model)) > 0.01


def test_areas_of_the_positive_prompt(adapted):
    """ComfyUI gives the negative side a copy of an area that it lacks, with the positive one's id."""
    model, positive, negative, table, content, adapter, tokens = adapted
    left, right = ([[tensor, {**options, "area": (16, 8, 0, x), "strength": 1.0}] for tensor, options in positive]
                   for x in (0, 8))
    patched = ApplyIPAdapter.execute(model, adapter, tokens, 1.0, 0.0, 1.0).args[0]
    got = sample(patched, [*left, *right], negative)
    no, yes = tokens.negative[0], tokens.vectors[0]
    with added_by_hand(model, table, content, {4: [no, no, yes, yes], 1: [no]}, 1.0):
        expected = sample(model, [*left, *right], negative)
    assert difference(got, expected) < CLOSE


def test_rows_without_tokens_of_their_own_stay_as_they_are(adapted):
    model, positive, negative, table, content, adapter, tokens = adapted
    alone = VisualTokens(tokens.vectors[:1], "IP-Adapter")
    got = sample(ApplyIPAdapter.execute(model, adapter, alone, 1.0, 0.0, 1.0).args[0], positive, negative)
    with added_by_hand(model, table, content, [torch.zeros_like(tokens.vectors[0]), tokens.vectors[0]], 1.0):
        expected = sample(model, positive, negative)  # zero tokens have zero values
    assert difference(got, expected) < CLOSE


def test_off_and_outside_the_window_is_bit_identical(adapted):
    model, positive, negative, *_, adapter, tokens = adapted
    plain = sample(model, positive, negative, steps=3)

    def with_window(weight, start, end):
        patched = ApplyIPAdapter.execute(model, adapter, tokens, weight, start, end).args[0]
        return sample(patched, positive, negative, steps=3)

    assert torch.equal(with_window(0.0, 0.0, 1.0), plain)
    assert torch.equal(with_window(1.0, 0.5, 0.4), plain)
    whole, late, early = with_window(1.0, 0.0, 1.0), with_window(1.0, 0.6, 1.0), with_window(1.0, 0.0, 0.6)
    assert len({tuple(result.flatten().tolist()) for result in (plain, whole, late, early)}) == 4
    assert torch.equal(sample(model, positive, negative, steps=3), plain)


@pytest.mark.parametrize("kind", companions.KINDS)
def test_composes(kind, adapted):
    model, positive, negative, table, content, adapter, tokens = adapted
    composed, with_companion = companions.composed(
        kind, model, positive, lambda m: ApplyIPAdapter.execute(m, adapter, tokens, 1.0, 0.0, 1.0).args[0])
    got = sample(composed, with_companion, negative, steps=1)
    plain, _ = companions.composed(kind, model, positive, lambda m: m)
    gain = 1.05 if kind == "patch before" else 1.0  # of an output patch between the hooks and ours
    with added_by_hand(model, table, content, [tokens.negative[0], tokens.vectors[0]], 1.0, gain):
        expected = sample(plain, with_companion, negative, steps=1)
    assert difference(got, expected) < CLOSE


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype, sd15, tmp_path):
    adapter = read_ip_adapter(saved(official(sd15.model, SD15, "plus"), tmp_path / "plus.safetensors"))
    tokens = VisualTokens(torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(5)), "IP-Adapter")
    positive, negative = encoded(sd15.clip, PROMPT), encoded(sd15.clip, "blurry")
    plain, adapted = ([sample(patch(model), positive, negative) for model in (load_half("sd15.safetensors", dtype),
                                                                             sd15.model)]
                      for patch in (lambda m: m, lambda m: ApplyIPAdapter.execute(m, adapter, tokens, 1.0, 0.0,
                                                                                  1.0).args[0]))
    assert difference(*adapted) < 2 * difference(*plain) < 0.5 * difference(adapted[1], plain[1])


def test_two_adapters_add_up(adapted):
    model, positive, negative, table, content, adapter, tokens = adapted
    half = ApplyIPAdapter.execute(model, adapter, tokens, 0.5, 0.0, 1.0).args[0]
    twice = sample(ApplyIPAdapter.execute(half, adapter, tokens, 0.5, 0.0, 1.0).args[0], positive, negative)
    once = sample(ApplyIPAdapter.execute(model, adapter, tokens, 1.0, 0.0, 1.0).args[0], positive, negative)
    assert difference(twice, once) < CLOSE < difference(sample(half, positive, negative), once)


def test_what_sampling_leaves_can_serve_training(adapted):
    model, positive, negative, *_, adapter, tokens = adapted
    with torch.inference_mode():
        attention = token_attention(model, adapter, tokens, 1.0)
        sample(with_added_attention(model, attention), positive, negative, steps=1)
    kept = attention.positive
    assert kept._placed and not any(part.is_inference() for pairs in (kept.by_layer, kept._placed)
                                    for pair in pairs.values() for part in pair)


def regional(model):
    """As attention couple does: the conditional rows twice, merged again after the attention."""
    def double(n, context, value, options):
        return (torch.cat([part, part[1:]]) for part in (n, context, value))

    patched = model.clone()
    patched.set_model_attn2_patch(double)
    patched.set_model_attn2_output_patch(lambda n, options: torch.stack([n[0], (n[1] + n[2]) / 2]))
    return patched


def test_patches_that_change_the_rows(adapted):
    model, positive, negative, *_, adapter, tokens = adapted

    def apply(m):
        return ApplyIPAdapter.execute(m, adapter, tokens, 1.0, 0.0, 1.0).args[0]

    assert difference(sample(apply(regional(model)), positive, negative),
                      sample(apply(model), positive, negative)) < CLOSE
    with pytest.raises(ValueError, match="put that node before Apply IP-Adapter"):
        sample(regional(apply(model)), positive, negative)


def test_other_tokens_in_the_branch(adapted):
    """The visual-only branch of Self-Attention Swap sees its own tokens, the picture sees the others."""
    from personalize.nodes.attention.branch import Branch, Patches, with_branch

    model, positive, negative, *_, adapter, tokens = adapted
    other = VisualTokens(tokens.vectors.flip(-1), "IP-Adapter", tokens.negative)
    ends = []

    class Watcher:
        def patches(self, step, sides, unet):
            return Patches(), Patches()

        def finished(self, picture, branch):
            ends.append((picture, branch))

    patched = ApplyIPAdapter.execute(model, adapter, tokens, 1.0, 0.0, 1.0, branch_tokens=other).args[0]
    got = sample(with_branch(patched, Branch(positive, negative), lambda *_: Watcher()), positive, negative)
    alone = {id(each): sample(ApplyIPAdapter.execute(model, adapter, each, 1.0, 0.0, 1.0).args[0], positive, negative)
             for each in (tokens, other)}
    (_, branch), = ends
    assert difference(got, alone[id(tokens)]) < CLOSE and difference(branch, alone[id(other)]) < CLOSE
    assert difference(got, branch) > 0.01


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
        ApplyIPAdapter.execute(sdxl.model, for_xl, tokens, 1.0, 0.0, 1.0)
    assert sd15.model.model_options["transformer_options"] == before
    wide = tiny.state_dict("base", 1024, 32, [layer.channels for layer in attention_layers(sd15.model)])
    other = read_ip_adapter(saved(wide, tmp_path / "wide.safetensors"))
    with pytest.raises(ValueError, match="gives vectors of width 24 but wide.safetensors needs 1024; load ViT-H/14"):
        EncodePictureIPAdapter.execute(other, clip_vision, picture(), "crop", "average")
    with pytest.raises(ValueError, match="clip_vision is missing"):
        EncodePictureIPAdapter.execute(for_15, None, picture(), "crop", "average")


def test_pictures_of_every_shape(sd15, clip_vision, tmp_path):
    adapter = read_ip_adapter(saved(official(sd15.model, SD15, "plus"), tmp_path / "a.safetensors"))

    def tokens(image, fit="crop"):
        with torch.inference_mode():
            return EncodePictureIPAdapter.execute(adapter, clip_vision, image, fit, "average").args[0].vectors

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


def test_far_ends_do_not_reach_the_crop():
    image = picture(100, 1000)
    sizes = (56, [0.0] * 3, [1.0] * 3)
    middle = pixel_values(checked(image[:, :, 350:650]), *sizes, "crop")
    assert torch.allclose(pixel_values(checked(image), *sizes, "crop"), middle, atol=2 / 255)
    assert pixel_values(checked(image), *sizes, "squash").shape == (1, 3, 56, 56)


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
            "ip_adapter": ["2", 0], "clip_vision": ["3", 0], "image": ["4", 0], "fit": "crop", "pictures": "average"}},
        "6": {"class_type": "PersonalizeApplyIPAdapter", "inputs": {
            "model": ["1", 0], "ip_adapter": ["2", 0], "visual_tokens": ["5", 0], "weight": 1.0, "start": 0.0,
            "end": 1.0}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": PROMPT}},
        "8": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "9": {"class_type": "KSampler", "inputs": {
            "model": ["6", 0], "positive": ["7", 0], "negative": ["7", 0], "latent_image": ["8", 0], "seed": 1,
            "steps": 2, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}}}
    got = execute(prompt, get={"latent": ["9", 0], "tokens": ["5", 0]}).values
    assert got["latent"]["samples"].isfinite().all() and got["tokens"].vectors.shape == (1, 4, 32)
    prompt["6"]["inputs"]["weight"] = 0.0
    assert not torch.equal(execute(prompt, get={"latent": ["9", 0]}).values["latent"]["samples"],
                           got["latent"]["samples"])
    from support.failures import PromptFailed

    prompt["2"]["inputs"]["file"] = "absent.safetensors"
    with pytest.raises(PromptFailed, match="There is no file 'absent.safetensors' in .*ipadapter"):
        execute(prompt, get={"latent": ["9", 0]})
