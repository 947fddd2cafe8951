"""BLIP-Diffusion: folders, tokens and prompts against computations by hand; what is refused."""
from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from personalize.nodes.text.apply import clip_with_vectors
from personalize.nodes.text.encoders import text_encoders
from personalize.nodes.text.layout import END, PADDING, VISUAL, layout_in
from personalize.nodes.visual_prompts.blip_diffusion_files import find_folder, folder_names, read_blip_diffusion
from personalize.nodes.visual_prompts.nodes_blip_diffusion import PersonalizeEncodePictureBlipDiffusion
from personalize.nodes.visual_prompts.nodes_prompt import PersonalizeEncodePromptWithPicture
from personalize.nodes.visual_prompts.pictures import checked, pixel_values
from personalize.nodes.visual_prompts.prompts import encode_with_picture
from personalize.nodes.visual_prompts.tokens import VisualTokens
from support.blip_by_hand import text_by_hand, tokens_by_hand
from support.failures import PromptFailed
from support.layouts import spans_in, tokens_in
from support.paths import comfyui
from support.sampling import difference, encoded, sample
from tiny import blip_diffusion as tiny
from tiny.models import WIDTH_L

SUBJECTS = {"dog": [101, 104, 102], "Teddy bears": [101, 105, 106, 107, 102],
            "a red backpack": [101, 110, 111, 108, 109, 102], "zebra": [101, 100, 102]}
PROMPT = "a {} dog swimming in a pool"


@pytest.fixture
def folder(tmp_path):
    tiny.write(tmp_path / "blip", WIDTH_L)
    return tmp_path / "blip"


@pytest.fixture(scope="module")
def visual():
    draw = torch.Generator().manual_seed(7)
    return VisualTokens(0.1 * torch.randn(1, tiny.QUERIES, WIDTH_L, generator=draw), "BLIP-Diffusion")


def picture(height=40, width=56, seed=0):
    return torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(seed))


def encode_picture(encoder, image, subject="dog", fit="squash", pictures="average"):
    with torch.inference_mode():
        return PersonalizeEncodePictureBlipDiffusion.execute(encoder, image, subject, fit, pictures).args[0]


# ---------------------------------------------------------------------------------------------------------- diffusers
@pytest.fixture(scope="module")
def released():
    """What diffusers 0.32.2 gives for the same weights: authoring/blip_diffusion_reference.py."""
    return load_file(tiny.REFERENCE)


@pytest.mark.by_hand
def test_tokens_equal_those_of_diffusers(released, tmp_path):
    tiny.write(tmp_path / "blip", tiny.REFERENCE_WIDTH)
    encoder = read_blip_diffusion(tmp_path / "blip")
    picture = torch.from_numpy(tiny.reference_picture()).float()[None] / 255
    values = pixel_values(checked(picture), encoder.side, encoder.mean, encoder.std, "squash")
    assert float((values - released["pixels"]).abs().max()) * min(tiny.STD) <= 2 / 255, "resized by another library"
    for subject in tiny.REFERENCE_SUBJECTS:
        expected = released[f"tokens {subject}"]
        assert torch.allclose(encoder.see(released["pixels"], subject), expected, atol=2e-5)
        assert torch.allclose(encode_picture(encoder, picture, subject).vectors, expected, atol=0.1)
    one, other = (released[f"tokens {subject}"] for subject in tiny.REFERENCE_SUBJECTS)
    assert float((one - other).abs().max()) > 0.2, "the subject's name would not show"


@pytest.mark.by_hand
def test_conditionings_equal_those_of_diffusers(released, load_checkpoint):
    clip = load_checkpoint("sd15").clip
    tokens = VisualTokens(released[f"tokens {tiny.REFERENCE_SUBJECTS[0]}"], "BLIP-Diffusion")
    with torch.inference_mode():
        different = clip.cond_stage_model.clip_l.transformer.load_state_dict(tiny.text_weights(), strict=False)
        assert not different.unexpected_keys and different.missing_keys == ["text_projection.weight"]
        for target, prompt in tiny.REFERENCE_PROMPTS:
            (got, _), = encode_with_picture(clip, tokens, f"a {{}} {target} {prompt}")
            assert torch.allclose(got, released[f"text {target} {prompt}"], atol=2e-5)
        assert torch.allclose(encoded(clip, "")[0][0], released["text of nothing"], atol=2e-5)


# ------------------------------------------------------------------------------------------------------------- tokens
@pytest.mark.parametrize("layout", [tiny.HUGGING_FACE, tiny.LAVIS])
@pytest.mark.parametrize("subject", SUBJECTS)
def test_tokens_equal_the_computation_by_hand(layout, subject, tmp_path):
    weights = tiny.write(tmp_path / "blip", WIDTH_L, layout)
    encoder = read_blip_diffusion(tmp_path / "blip")
    if layout == tiny.LAVIS:  # says nothing of heads: 64 wide, one each here
        assert (encoder.picture_heads, encoder.query_heads, encoder.eps) == (1, 1, 1e-5)
        encoder = type(encoder)(**{**vars(encoder), "picture_heads": 2, "query_heads": 2})
    assert encoder.side == tiny.SIDE and encoder.words.ids(subject) == tuple(SUBJECTS[subject])
    pixels = torch.randn(2, 3, tiny.SIDE, tiny.SIDE, generator=torch.Generator().manual_seed(1))
    expected = tokens_by_hand(weights, pixels, SUBJECTS[subject], 2, 2, encoder.eps)
    got = encoder.see(pixels, subject)
    assert got.shape == (2, 16, WIDTH_L) and torch.allclose(got, expected, atol=2e-5)


@pytest.mark.smoke
def test_pictures_are_prepared_as_released(folder):
    encoder = read_blip_diffusion(folder)
    image = picture(300, 200)
    as_file = Image.fromarray((image[0] * 255).round().byte().numpy())
    for fit, prepared in (("squash", as_file.resize((28, 28), Image.BICUBIC)),
                          ("crop", as_file.resize((28, 42), Image.BICUBIC).crop((0, 7, 28, 35)))):
        values = torch.from_numpy(np.array(prepared)).float() / 255
        pixels = ((values - torch.tensor([0.5, 0.4, 0.3])) / 0.2).movedim(-1, 0)[None]
        got = encode_picture(encoder, (image * 255).round() / 255, fit=fit)
        assert got.source == "BLIP-Diffusion" and got.negative is None
        assert torch.allclose(got.vectors, encoder.see(pixels, "dog"), atol=0.05)
        assert not torch.allclose(got.vectors, encoder.see(-pixels, "dog"), atol=0.1)


def test_several_pictures_and_every_shape(folder):
    encoder = read_blip_diffusion(folder)
    images = torch.cat([picture(seed=1), picture(seed=2)])
    each, average, joined = (encode_picture(encoder, images, pictures=how).vectors
                             for how in ("one per image", "average", "concatenate"))
    assert each.shape == (2, 16, WIDTH_L) and torch.allclose(average, each.mean(0, keepdim=True), atol=1e-6)
    assert torch.equal(joined, torch.cat([each[0], each[1]])[None])
    for image in (picture(1, 1), picture(1, 2000), torch.rand(1, 9, 9, 4), picture(4320, 7680)):
        assert encode_picture(encoder, image, fit="crop").vectors.isfinite().all()
    with pytest.raises(ValueError, match="class_words is empty"):
        encode_picture(encoder, images, "  ")


def test_word_list_in_tokenizer_json(folder):
    from tokenizers import BertWordPieceTokenizer

    BertWordPieceTokenizer({word: i for i, word in enumerate([*tiny.WORDS, "[DEC]"])}).save(
        str(folder / "qformer" / "tokenizer.json"))
    (folder / "qformer" / "vocab.txt").unlink()
    words = read_blip_diffusion(folder).words
    assert {subject: list(words.ids(subject)) for subject in SUBJECTS} == SUBJECTS
    assert words.ids("dog " * 50) == (101, *[104] * 10, 102)


# ------------------------------------------------------------------------------------------------------------ prompts
def official_ids(prompt: str, queries: int) -> list[int]:
    """Tokens as the released pipeline makes them, without the picture's."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(comfyui() / "comfy" / "sd1_tokenizer")
    text = ", ".join([prompt] * 20)
    return tokenizer(text, padding="max_length", truncation=True, max_length=77 - queries)["input_ids"]


def expected_text(clip, ids, vectors, place):
    """What the text encoder gives when `vectors` stand at `place` among the tokens `ids`."""
    state = {name: weight.float() for name, weight in clip.cond_stage_model.clip_l.transformer.state_dict().items()}
    rows = state["text_model.embeddings.token_embedding.weight"][ids]
    return text_by_hand(state, torch.cat([rows[:place], vectors, rows[place:]]), heads=2)


@pytest.mark.parametrize("words", [
    "dog swimming in a pool", "dog", "dog " + "very " * 50 + "extraordinarily-chequered"])
def test_prompts_equal_the_released_pipeline(words, sd15, visual):
    ids = official_ids(f"a {words}", tiny.QUERIES)
    with torch.inference_mode():
        (got, options), = encode_with_picture(sd15.clip, visual, "a {} " + words)
    expected = expected_text(sd15.clip, ids, visual.vectors[0], 2)
    assert got.shape == (1, 77, WIDTH_L) and torch.allclose(got[0], expected, atol=1e-4)
    assert spans_in(options) == {VISUAL: tuple(range(2, 18))} and layout_in(options).length == 77
    assert tokens_in(options)[1:20] == ("a", *[VISUAL] * 16, "dog", "," if words == "dog" else words.split()[1])


def test_repeats(sd15, visual):
    tokens = {}
    with torch.inference_mode():
        for repeats in (1, 2, 3, 20):
            (_, options), = encode_with_picture(sd15.clip, visual, PROMPT, repeats)
            tokens[repeats] = [text for text in tokens_in(options) if text != PADDING]
    start, once = tokens[1][:18], ["dog", "swimming", "in", "a", "pool"]
    again = [",", "a", *once]
    assert tokens[1] == [*start, *once, END]
    assert tokens[3] == [*start, *once, *again, *again, END]
    assert tokens[20] == [*start, *(once + again * 19)[:58], END]


def test_long_and_weighted_prompts_keep_every_word(sd15, visual):
    words = "very " * 90 + "(happy:1.4)"
    file = clip_with_vectors(sd15.clip, {"<x>": {"clip_l": visual.vectors[0]}})
    with torch.inference_mode():
        (got, options), = encode_with_picture(sd15.clip, visual, "a {} dog " + words, 1)
        (expected, _), = file.encode_from_tokens_scheduled(file.tokenize("a <x> dog " + words))
        (filled, more), = encode_with_picture(sd15.clip, visual, "a {} dog " + words, 20)
    assert torch.equal(got, expected) and layout_in(options).length == layout_in(more).length == 154
    assert torch.equal(filled[:, :77], got[:, :77]) and PADDING not in tokens_in(more) and PADDING in tokens_in(options)


def test_concepts_and_pictures_in_one_prompt(sd15, visual):
    cat = 0.1 * torch.randn(2, WIDTH_L, generator=torch.Generator().manual_seed(2))
    taught = clip_with_vectors(sd15.clip, {"<my-cat>": {"clip_l": cat}})
    both = clip_with_vectors(taught, {"<x>": {"clip_l": visual.vectors[0]}})
    with torch.inference_mode():
        (got, options), = encode_with_picture(taught, visual, "a {} dog beside <my-cat>", 1)
        (expected, _), = both.encode_from_tokens_scheduled(both.tokenize("a <x> dog beside <my-cat>"))
        (_, again), = encode_with_picture(taught, visual, "a {} dog beside <my-cat>", 3)
    assert torch.equal(got, expected)
    assert spans_in(options) == {"<my-cat>": (20, 21), VISUAL: tuple(range(2, 18))}
    assert spans_in(again) == {"<my-cat>": (20, 21, 26, 27, 32, 33), VISUAL: tuple(range(2, 18))}


def test_a_batch_of_pictures(sd15, visual):
    two = VisualTokens(torch.cat([visual.vectors, visual.vectors.flip(-1)]), "BLIP-Diffusion")
    with torch.inference_mode():
        (both, options), = encode_with_picture(sd15.clip, two, PROMPT)
        alone = [encode_with_picture(sd15.clip, VisualTokens(each[None], "BLIP-Diffusion"), PROMPT)[0][0]
                 for each in two.vectors]
    assert torch.equal(both, torch.cat(alone)) and len(options["pooled_output"]) == 2
    negative = encoded(sd15.clip, "")
    images = sample(sd15.model, [[both, options]], negative, batch=2)
    of_second = sample(sd15.model, [[both[[1, 1]], options]], negative, batch=2)
    assert difference(images[1:], of_second[1:]) < 1e-5 < difference(images[:1], of_second[:1])


def test_prompts_that_do_not_fit(sd15, sdxl, sd21, visual):
    for prompt in ("a dog", "a {} and a {}"):
        with pytest.raises(ValueError, match="needs exactly one {}, as in"):
            PersonalizeEncodePromptWithPicture.execute(sd15.clip, visual, prompt, 0, "a {}")
    with pytest.raises(ValueError, match="This CLIP has clip_l of width 32 and clip_g of width 48 but BLIP-Diff"):
        PersonalizeEncodePromptWithPicture.execute(sdxl.clip, visual, PROMPT, 0, "a {}")
    with pytest.raises(ValueError, match="clip_h of width 40 but .* width 32; use a checkpoint of SD1.x"):
        PersonalizeEncodePromptWithPicture.execute(sd21.clip, visual, PROMPT, 0, "a {}")
    with pytest.raises(ValueError, match="come from IP-Adapter and cannot stand in a prompt"):
        PersonalizeEncodePromptWithPicture.execute(sd15.clip, VisualTokens(visual.vectors, "IP-Adapter"), PROMPT, 0,
                                                   "a {}")
    assert text_encoders(sd15.clip)[0].key == "clip_l"


# ------------------------------------------------------------------------------------------------------------ refused
def test_foreign_and_damaged_folders_are_refused(folder, tmp_path):
    def refused(change, message):
        broken = tmp_path / "broken"
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(folder, broken)
        change(broken)
        with pytest.raises(ValueError, match=message):
            read_blip_diffusion(broken)

    def weights(change):
        def apply(broken):
            path = broken / "qformer" / "model.safetensors"
            tensors = load_file(path)
            change(tensors)
            save_file(tensors, path)
        return apply

    def cut(broken):
        path = broken / "qformer" / "model.safetensors"
        path.write_bytes(path.read_bytes()[:3000])

    def vocabulary(words):
        return lambda broken: (broken / "qformer" / "vocab.txt").write_text("\n".join(words))

    refused(cut, "model.safetensors is damaged or no BLIP-Diffusion file")
    refused(weights(lambda tensors: tensors.pop("query_tokens")),
            "holds no BLIP-Diffusion encoder: found .* expected query")
    refused(weights(lambda tensors: tensors.pop("encoder.layer.1.output_query.dense.bias")),
            "found nothing for encoder.layer.1.output_query.dense.bias, expected")
    refused(weights(lambda tensors: tensors.update({"proj_layer.dense2.weight": torch.zeros(9, 9)})),
            r"found \(9, 9\) for proj_layer.dense2.weight, expected \(32, 128\)")
    refused(lambda broken: (broken / "qformer" / "model.safetensors").unlink(), "lacks qformer/model.safetensors or")
    refused(lambda broken: (broken / "qformer" / "vocab.txt").unlink(), "There is no word list of BERT in .*qformer;")
    refused(vocabulary([]), "has 0 words, expected 112")
    refused(vocabulary(tiny.WORDS[:-3]), "has 109 words, expected 112")
    moved = ["[CLS]", *tiny.WORDS[1:101], "x", *tiny.WORDS[102:]]
    refused(vocabulary(moved), r"\[CLS\] has the number 0, expected 101")
    refused(lambda broken: (broken / "qformer" / "tokenizer.json").write_text("{}"), "cannot be read")
    refused(lambda broken: (broken / "qformer" / "config.json").write_text("{"), "config.json is damaged")
    relu = json.dumps({"vision_config": {"hidden_act": "relu"}})
    refused(lambda broken: (broken / "qformer" / "config.json").write_text(relu),
            "names the activation relu, expected one of quick_gelu, gelu")


def test_half_a_lavis_folder(tmp_path):
    tiny.write(tmp_path / "lavis", WIDTH_L, tiny.LAVIS)
    (tmp_path / "lavis" / "proj_layer" / "proj_weight.pt").unlink()
    with pytest.raises(ValueError, match="lacks proj_layer/proj_weight.pt"):
        read_blip_diffusion(tmp_path / "lavis")


# ------------------------------------------------------------------------------------------------------------ in graph
def test_nodes_in_a_graph(execute, base, tiny_checkpoints):
    tiny.write(base / "models" / "diffusers" / "snapshots" / "blip-graph", WIDTH_L)
    prompt = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": tiny_checkpoints["sd15"]}},
        "2": {"class_type": "PersonalizeLoadBlipDiffusion", "inputs": {"folder": "snapshots/blip-graph"}},
        "3": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 48, "batch_size": 1, "color": 0x336699}},
        "4": {"class_type": "PersonalizeEncodePictureBlipDiffusion", "inputs": {
            "blip_diffusion": ["2", 0], "image": ["3", 0], "class_words": "dog", "fit": "squash",
            "combine": "average"}},
        "5": {"class_type": "PersonalizeEncodePromptWithPicture", "inputs": {
            "clip": ["1", 1], "visual_tokens": ["4", 0], "prompt": PROMPT, "repeats": 0, "visual_prompt": "a {}"}}}
    got = execute(prompt, get={"positive": ["5", 0], "visual": ["5", 1], "tokens": ["4", 0]}).values
    assert got["positive"][0][0].shape == got["visual"][0][0].shape == (1, 77, WIDTH_L)
    assert spans_in(got["visual"][0][1]) == spans_in(got["positive"][0][1]) == {VISUAL: tuple(range(2, 18))}
    assert not torch.equal(got["positive"][0][0], got["visual"][0][0])
    assert "snapshots/blip-graph" in folder_names()
    for name in ("absent", "../snapshots/blip-graph", "snapshots", str(base / "models" / "diffusers" / "snapshots")):
        prompt["2"]["inputs"]["folder"] = name
        with pytest.raises(PromptFailed, match=f"There is no BLIP-Diffusion '{name}' in .*blip_diffusion or in"):
            execute(prompt, get={"positive": ["5", 0]})


def test_a_folder_without_a_name_of_its_own(base):
    folder = base / "models" / "blip_diffusion"
    tiny.write(folder, WIDTH_L)
    assert folder_names()[0] == "." and find_folder(".") == folder
