"""ELITE: tokens, attention and files against computations by hand; beside other patches; what is refused."""
from __future__ import annotations

import pytest
import torch

from personalize.nodes.families.find import unet_of
from personalize.nodes.text.layout import VISUAL
from personalize.nodes.visual_prompts.elite_attention import KEY, EliteTokens
from personalize.nodes.visual_prompts.elite_files import read_elite
from personalize.nodes.visual_prompts.nodes_elite import PersonalizeApplyElite, PersonalizeEncodePictureElite
from personalize.nodes.visual_prompts.pictures import pixel_values
from personalize.nodes.visual_prompts.prompts import encode_with_picture
from personalize.nodes.visual_prompts.tokens import VisualTokens
from support import companions
from support.elite_by_hand import elite_by_hand, patches_by_hand, word_by_hand
from support.failures import PromptFailed
from support.inprocess import load_computing_in
from support.layouts import spans_in
from support.sampling import difference, encoded, guided, sample
from tiny import elite as tiny
from tiny import vision
from tiny.models import WIDTH_L

CLOSE = 1e-5
PROMPT = "a photo of a {} on the beach"
WORD = 5  # its position there
PATCHES = (vision.SIDE // 14) ** 2


def official(model, seed: int) -> dict[str, torch.Tensor]:
    channels = {layer.block: layer.channels for layer in unet_of(model).layers}
    return tiny.state_dict(channels, vision.WIDTH, WIDTH_L, seed)


@pytest.fixture(scope="module")
def clip_vision():
    return vision.load()


@pytest.fixture
def files(sd15, tmp_path):
    """The two files and what is in them."""
    contents = official(sd15.model, 1), official(sd15.model, 2)
    for name, content in zip(("global_mapper.pt", "local_mapper.pt"), contents):
        torch.save(content, tmp_path / name)
    return tmp_path / "global_mapper.pt", tmp_path / "local_mapper.pt", *contents


@pytest.fixture
def elite(files):
    return read_elite(*files[:2])


@pytest.fixture
def tokens():
    draw = torch.Generator().manual_seed(3)
    return EliteTokens(0.1 * torch.randn(1, 1, WIDTH_L, generator=draw), "ELITE",
                       local=torch.randn(1, PATCHES, WIDTH_L, generator=draw))


@pytest.fixture
def scene(exact, tokens):
    """(model in float64, conditioning with the word, negative, weights of the unpatched model)."""
    model, clip, _ = exact("sd15")
    with torch.inference_mode():
        positive = encode_with_picture(clip, tokens, PROMPT)
    assert spans_in(positive[0][1]) == {VISUAL: (WORD,)}
    return model, positive, encoded(clip, ""), model.model.state_dict()


def applied(model, elite, tokens, local_strength=0.8, text_strength=1.0, start=0.0, end=1.0):
    return PersonalizeApplyElite.execute(model, elite, tokens, local_strength, text_strength, start, end).args[0]


def picture(height=70, width=90, channels=3, seed=0):
    return torch.rand(1, height, width, channels, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------------------- tokens
def test_files_have_the_published_layout(files):
    assert len(files[2]) == len(files[3]) == 132


def states_of(clip_vision, image):
    """Five sets of states as the released code takes them: the last layer's, and those of layers 4, 8, 12 and 16."""
    pixels = pixel_values(image, vision.SIDE, clip_vision.image_mean, clip_vision.image_std, "squash")
    with torch.inference_mode():
        last, every, _, _ = clip_vision.model(pixel_values=pixels, intermediate_output="all")
    return [last.float(), *(every[:, count - 1].float() for count in (4, 8, 12, 16))]


@pytest.mark.smoke
def test_tokens_equal_the_computation_by_hand(files, elite, clip_vision):
    image = torch.cat([picture(seed=1), picture(seed=2)])
    mask = torch.zeros(2, 70, 90)
    mask[0, 10:50, 20:70], mask[1, :, 45:] = 1.0, 0.2
    with torch.inference_mode():
        got = PersonalizeEncodePictureElite.execute(elite, clip_vision, image, "one per image", mask).args[0]
    grid = torch.stack([shape[[0, 17, 35, 52]][:, [0, 22, 45, 67]] > 0 for shape in mask]).float().flatten(1)
    expected = patches_by_hand(files[3], states_of(clip_vision, image * (mask > 0)[..., None]), grid)
    assert got.source == "ELITE" and got.vectors.shape == (2, 1, WIDTH_L) and got.local.shape == (2, PATCHES, WIDTH_L)
    assert torch.allclose(got.vectors, word_by_hand(files[2], states_of(clip_vision, image)[0]), atol=1e-4)
    assert torch.allclose(got.local, expected, atol=1e-4)
    assert torch.equal(got.local.abs().sum(-1) > 0, grid > 0)


def test_several_pictures_and_masks(elite, clip_vision):
    image = torch.cat([picture(seed=1), picture(seed=2)])

    def encode(image, pictures="average", mask=None):
        with torch.inference_mode():
            return PersonalizeEncodePictureElite.execute(elite, clip_vision, image, pictures, mask).args[0]

    each, average, joined = (encode(image, how) for how in ("one per image", "average", "concatenate"))
    assert torch.allclose(average.vectors, each.vectors.mean(0, keepdim=True), atol=1e-6)
    assert torch.equal(joined.vectors[0], each.vectors[:, 0])
    for several in (average, joined):
        assert torch.equal(several.local, each.local.flatten(0, 1)[None])
    cut_out = torch.cat([picture(seed=1), torch.zeros(1, 70, 90, 1)], -1)
    cut_out[:, 10:60, 20:80, 3] = 1
    assert torch.equal(encode(cut_out).local, encode(cut_out, mask=cut_out[..., 3]).local)
    assert (encode(cut_out).local == 0).any() and not (encode(image).local == 0).any()
    for shape in ((1, 1), (1, 3000), (3000, 2), (4320, 7680)):
        assert encode(picture(*shape)).local.isfinite().all()
    with pytest.raises(ValueError, match="mask is empty"):
        encode(image, mask=torch.zeros(1, 70, 90))
    with pytest.raises(ValueError, match="mask is 1 × 64×64 but image is 2 × 90×70; .*Load Image gives an empty"):
        encode(image, mask=torch.ones(1, 64, 64))


# ---------------------------------------------------------------------------------------------------------- attention
@pytest.mark.parametrize("local_strength, text_strength", [(0.8, 1.0), (0.0, 1.0), (1.0, 0.4)])
def test_sampling_equals_hooks_by_hand(local_strength, text_strength, files, elite, tokens, scene):
    model, positive, negative, original = scene
    with_picture = (WORD, tokens.local[0])
    got = sample(applied(model, elite, tokens, local_strength, text_strength), positive, negative, batch=2)
    with elite_by_hand(model, original, *files[2:], [None, None, with_picture, with_picture], local_strength,
                       text_strength=text_strength):
        expected = sample(model, positive, negative, batch=2)
    assert difference(got, expected) < CLOSE
    assert difference(got, sample(model, positive, negative, batch=2)) > 0.01


def test_copies_of_areas_under_a_guider_whose_positive_side_is_not_the_first(elite, tokens, scene, sd15):
    """DualCFGGuider's other prompts get copies of an area under its id; with the whole picture they change nothing."""
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    model, positive, negative, _ = scene

    def drawn(area: dict) -> torch.Tensor:
        guider = Guider_DualCFG(applied(model, elite, tokens))
        guider.set_conds([[tensor, {**options, **area}] for tensor, options in positive],
                         encoded(sd15.clip, "one dog"), negative)
        guider.set_cfg(5.0, 2.0)
        return guided(guider)

    assert difference(drawn({"area": (16, 16, 0, 0), "strength": 1.0}), drawn({})) < CLOSE


@pytest.mark.parametrize("kind", companions.KINDS)
def test_composes(kind, files, elite, tokens, scene):
    model, positive, negative, original = scene
    composed, with_companion = companions.composed(kind, model, positive, lambda m: applied(m, elite, tokens))
    got = sample(composed, with_companion, negative, steps=1)
    plain, _ = companions.composed(kind, model, positive, lambda m: m)
    gain = 1.05 if kind == "patch before" else 1.0  # of an output patch between the hooks and ours
    with elite_by_hand(model, original, *files[2:], [None, (WORD, tokens.local[0])], 0.8, gain):
        expected = sample(plain, with_companion, negative, steps=1)
    assert difference(got, expected) < CLOSE


def test_lora_before_or_after_is_the_same(elite, tokens, scene):
    model, positive, negative, _ = scene
    before = sample(applied(companions.with_lora(model), elite, tokens), positive, negative)
    after = sample(companions.with_lora(applied(model, elite, tokens)), positive, negative)
    without = sample(applied(model, elite, tokens), positive, negative)
    assert torch.equal(before, after) and not torch.equal(before, without)


@pytest.mark.parametrize("order", ["before", "after"])
def test_prompts_whose_tokens_stand_in_pairs(elite, tokens, scene, sd15, order):
    """With positive weights alone they are the plain prompt once the model has taken them apart."""
    model, positive, negative, _ = scene
    paired, clip = companions.with_pairs(model, sd15.clip)
    patched = applied(paired, elite, tokens) if order == "before" else companions.with_pairs(
        applied(model, elite, tokens), sd15.clip)[0]
    with torch.inference_mode():
        in_pairs = encode_with_picture(clip, tokens, PROMPT)
    drawn = sample(patched, in_pairs, encoded(clip, ""))
    assert in_pairs[0][0].shape[1] == 154
    assert difference(drawn, sample(applied(model, elite, tokens), positive, negative)) < CLOSE


def test_off_and_outside_the_window_is_bit_identical(elite, tokens, scene):
    model, positive, negative, _ = scene
    def drawn(*settings):
        return sample(applied(model, elite, tokens, *settings), positive, negative, steps=3)

    plain = sample(model, positive, negative, steps=3)
    assert torch.equal(drawn(0.0, 0.0), plain)
    text_alone = drawn(0.0)
    assert torch.equal(drawn(0.8, 1.0, 0.6, 0.9), text_alone)  # no step of three
    with pytest.raises(ValueError, match="start_percent .* is not before end_percent"):
        drawn(0.8, 1.0, 0.5, 0.5)
    whole, late = drawn(), drawn(0.8, 1.0, 0.6)
    assert len({tuple(result.flatten().tolist()) for result in (plain, text_alone, whole, late)}) == 4
    assert torch.equal(sample(model, positive, negative, steps=3), plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype, elite, tokens, scene):
    model, positive, negative, _ = scene
    half = load_computing_in(dtype, "sd15.safetensors")
    plain = [sample(each, positive, negative) for each in (half, model)]
    drawn = [sample(applied(each, elite, tokens), positive, negative) for each in (half, model)]
    assert difference(*drawn) < 2 * difference(*plain) < difference(drawn[1], plain[1])


def test_a_batch_of_pictures(sd15, elite, tokens):
    draw = torch.Generator().manual_seed(4)
    other = EliteTokens(0.1 * torch.randn(1, 1, WIDTH_L, generator=draw), "ELITE",
                        local=torch.randn(1, PATCHES, WIDTH_L, generator=draw))
    both = EliteTokens(torch.cat([tokens.vectors, other.vectors]), "ELITE",
                       local=torch.cat([tokens.local, other.local]))
    negative = encoded(sd15.clip, "")

    def drawn(tokens):
        with torch.inference_mode():
            positive = encode_with_picture(sd15.clip, tokens, PROMPT)
        return sample(applied(sd15.model, elite, tokens), positive, negative, batch=2)

    assert difference(drawn(both), torch.cat([drawn(tokens)[:1], drawn(other)[1:]])) < CLOSE


def test_contexts_of_different_length_share_a_batch(elite, tokens, scene, sd15):
    model, positive, _, _ = scene
    short, long = encoded(sd15.clip, "blurry"), encoded(sd15.clip, "blurry " * 100)
    patched = applied(model, elite, tokens)
    together = sample(patched, positive, long, cfg=1.0001)  # ComfyUI repeats the word's context beside the longer one
    assert difference(together, sample(patched, positive, short, cfg=1.0001)) < 1e-3


def test_in_the_branch_of_a_swap(elite, tokens, scene, sd15):
    """The visual-only branch has a prompt, and a place of the word, of its own."""
    from personalize.nodes.attention.branch import Branch, Patches, with_branch

    model, positive, negative, _ = scene
    with torch.inference_mode():
        visual_only = encode_with_picture(sd15.clip, tokens, "{}")
    ends = []

    class Watcher:
        def branch_patches(self, call):
            return Patches()

        picture_patches = branch_patches

        def finished(self, picture, branch):
            ends.append(branch)

    for patched in (with_branch(applied(model, elite, tokens), Branch(visual_only, negative), lambda *_: Watcher()),
                    applied(with_branch(model, Branch(visual_only, negative), lambda *_: Watcher()), elite, tokens)):
        got = sample(patched, positive, negative)
        assert difference(got, sample(applied(model, elite, tokens), positive, negative)) < CLOSE
        assert difference(ends.pop(), sample(applied(model, elite, tokens), visual_only, negative)) < CLOSE


# ------------------------------------------------------------------------------------------------------------ refused
def test_foreign_files_are_refused(files, tmp_path):
    global_file, local_file, of_word, _of_patches = files

    def refused(content, message, name="broken.pt"):
        torch.save(content, tmp_path / name)
        with pytest.raises(ValueError, match=message):
            read_elite(tmp_path / name, local_file)

    whole = global_file.read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(ValueError, match="half.pt is damaged or no ELITE mapper"):
        read_elite(tmp_path / "half.pt", local_file)
    refused({"a": torch.zeros(1)}, "broken.pt is no ELITE mapper: found a, expected mapping_0.0.weight")
    refused({name: of_word[name] for name in of_word if name != "mapping_patch_3.4.bias"}, "broken.pt is damaged")
    values = "mid_block_attentions_0_transformer_blocks_0_attn2_to_v.weight"
    refused({name: of_word[name] for name in of_word if name != values}, "broken.pt is damaged")
    refused({**of_word, "mapping_2.3.weight": torch.zeros(3, 3)}, "broken.pt is damaged")
    narrow = tiny.state_dict({block: 32 for block in tiny.PLACES.values()}, vision.WIDTH, 8)
    refused(narrow, "do not belong together: their tokens have width 8 and 32")
    with pytest.raises(ValueError, match="local_mapper.pt is chosen as the global mapper but its name says local"):
        read_elite(local_file, global_file)


def test_what_does_not_belong_together_is_refused(sd15, sdxl, sd21, elite, tokens, scene, clip_vision, tmp_path):
    model, _positive, negative, _ = scene
    for other, found in ((sdxl, "has 17 and 80"), (sd21, "has 16 and 40")):
        with pytest.raises(ValueError, match=f"global_mapper.pt is made for .* 16 .* width 32.* {found}; use"):
            applied(other.model, elite, tokens)
    with pytest.raises(ValueError, match="come from IP-Adapter; connect Encode Picture"):
        applied(model, elite, VisualTokens(tokens.vectors, "IP-Adapter"))
    with pytest.raises(ValueError, match="already carries ELITE"):
        applied(applied(model, elite, tokens), elite, tokens)
    assert not model.patches and not model.wrappers.get("sampler_sample", {}).get(KEY)
    with pytest.raises(ValueError, match="positive conditioning does not hold the picture; encode the prompt with"):
        sample(applied(model, elite, tokens), negative, negative)
    wide = tiny.state_dict({layer.block: layer.channels for layer in unet_of(model).layers}, 1024, WIDTH_L)
    for name in ("global_mapper.pt", "local_mapper.pt"):
        torch.save(wide, tmp_path / name)
    of_vit_l = read_elite(tmp_path / "global_mapper.pt", tmp_path / "local_mapper.pt")
    with pytest.raises(ValueError, match="has 24 layers of width 32 but global_mapper.pt needs 24 of width 1024; load"):
        PersonalizeEncodePictureElite.execute(of_vit_l, clip_vision, picture(), "average")


# ------------------------------------------------------------------------------------------------------------ in graph
def test_nodes_in_a_graph(execute, sd15, base, tiny_checkpoints):
    from safetensors.torch import save_file

    for folder in ("elite", "clip_vision"):
        (base / "models" / folder).mkdir(exist_ok=True)
    for name, seed in (("global_mapper.pt", 1), ("local_mapper.pt", 2)):
        torch.save(official(sd15.model, seed), base / "models" / "elite" / name)
    save_file(vision.state_dict(), base / "models" / "clip_vision" / "tiny.safetensors")
    prompt = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": tiny_checkpoints["sd15"]}},
        "2": {"class_type": "PersonalizeLoadElite", "inputs": {
            "global_mapper": "global_mapper.pt", "local_mapper": "local_mapper.pt"}},
        "3": {"class_type": "CLIPVisionLoader", "inputs": {"clip_name": "tiny.safetensors"}},
        "4": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 48, "batch_size": 1, "color": 0x336699}},
        "5": {"class_type": "PersonalizeEncodePictureElite", "inputs": {
            "elite": ["2", 0], "clip_vision": ["3", 0], "image": ["4", 0], "combine": "average"}},
        "6": {"class_type": "PersonalizeApplyElite", "inputs": {
            "model": ["1", 0], "elite": ["2", 0], "visual_tokens": ["5", 0], "local_strength": 0.8,
            "text_strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}},
        "7": {"class_type": "PersonalizeEncodePromptWithPicture", "inputs": {
            "clip": ["1", 1], "visual_tokens": ["5", 0], "prompt": PROMPT, "repeats": 0,
            "visual_prompt": "a photo of a {}"}},
        "8": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}},
        "9": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "10": {"class_type": "KSampler", "inputs": {
            "model": ["6", 0], "positive": ["7", 0], "negative": ["8", 0], "latent_image": ["9", 0], "seed": 1,
            "steps": 2, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}}}
    got = execute(prompt, get={"latent": ["10", 0], "tokens": ["5", 0]}).values
    assert got["latent"]["samples"].isfinite().all() and got["tokens"].local.shape == (1, PATCHES, WIDTH_L)
    prompt["2"]["inputs"]["local_mapper"] = "absent.pt"
    with pytest.raises(PromptFailed, match="There is no file 'absent.pt' in .*elite"):
        execute(prompt, get={"latent": ["10", 0]})
