"""Beside other people's packs: what they do to a CLIP and to conditionings, and whether words survive it."""
from __future__ import annotations

import nodes
import pytest
import torch

from personalize.nodes.recording.record import Record
from support.failures import PromptFailed
from support.packs import ADV_CLIP_EMB, ANIMATEDIFF, IMPACT, IPADAPTER, PPM, PROMPT_CONTROL, SMZ
from support.prompts import node

WORD, FILE = "<my-dog>", "embedding:packs-my-dog"
TEXT = "photo of (WORD :1.2) in snow, a (red:0.8) hat"
SMZ_SETTINGS = {"mean_normalization": True, "multi_conditioning": True, "use_old_emphasis_implementation": False,
                "with_SDXL": False, "ascore": 6.0, "width": 64, "height": 64, "crop_w": 0, "crop_h": 0,
                "target_width": 64, "target_height": 64, "text_g": "", "text_l": ""}


def scene(kind: str = "sd15") -> dict:
    """A checkpoint (1) whose CLIP was taught the word (3), and a file of the same vectors (4)."""
    return {"1": node("CheckpointLoaderSimple", ckpt_name=f"{kind}.safetensors"),
            "2": node("PersonalizeConcept", placeholder=WORD, class_words="dog", initial_words="red hat",
                      vector_count=2, embedding="none"),
            "3": node("PersonalizeApplyConcept", clip=["1", 1], concept=["2", 0])}


@pytest.fixture(scope="module")
def same_file(execute, base):
    """The concept's vectors as an embedding file, for each kind of model."""
    from safetensors.torch import save_file

    from personalize.nodes.text.concept import Concept, initial_vectors

    def made(kind: str) -> None:
        clip = execute({"1": scene(kind)["1"]}, {"clip": ["1", 1]}).values["clip"]
        rows = initial_vectors(Concept(WORD, "dog", "red hat", 2), clip)
        save_file(rows, base / "models" / "embeddings" / "packs-my-dog.safetensors")

    return made


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.pack(name)) for name in (
    ADV_CLIP_EMB, PROMPT_CONTROL, PPM, SMZ, IPADAPTER, ANIMATEDIFF, IMPACT)])
def test_loads(name, beside_packs):
    """The pack itself works here; else nothing below says anything."""
    assert [cls for cls in nodes.NODE_CLASS_MAPPINGS.values()
            if getattr(cls, "RELATIVE_PYTHON_MODULE", "") == f"custom_nodes.{name}"]


def assert_word_means_the_file(execute, same_file, kind, encode) -> None:
    """encode(clip wire, text) → the pack's node. Its conditioning of the word is that of the file, and a stock node
    that comes after it reads the word too."""
    same_file(kind)
    graph = {**scene(kind), "word": encode(["3", 0], TEXT.replace("WORD", WORD)),
             "file": encode(["1", 1], TEXT.replace("WORD", FILE)),
             "stock": node("CLIPTextEncode", clip=["3", 0], text=f"a {WORD}"),
             "stock file": node("CLIPTextEncode", clip=["1", 1], text=f"a {FILE}")}
    found = {name: execute(graph, {"c": [name, 0]}).values["c"] for name in ("word", "file", "stock", "stock file")}
    for word, file in (("word", "file"), ("stock", "stock file")):
        assert len(found[word]) == len(found[file])
        assert all(torch.equal(a[0], b[0]) for a, b in zip(found[word], found[file])), word
    assert not torch.equal(found["word"][0][0], found["stock"][0][0])


@pytest.mark.pack(ADV_CLIP_EMB)
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
@pytest.mark.parametrize("weights", ["comfy", "A1111", "compel", "comfy++", "down_weight"])
def test_adv_clip_emb(beside_packs, same_file, kind, weights):
    assert_word_means_the_file(beside_packs, same_file, kind, lambda clip, text: node(
        "BNK_CLIPTextEncodeAdvanced", clip=clip, text=text, token_normalization="length+mean",
        weight_interpretation=weights))


@pytest.mark.pack(PROMPT_CONTROL)
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
@pytest.mark.parametrize("before", ["", "STYLE(A1111, mean) ", "STYLE(comfy++, length) ", "a dog BREAK ", "cat CAT ",
                                    "[CUT:a red hat:red] ", "cat AND "])
def test_prompt_control(beside_packs, same_file, kind, before):
    assert_word_means_the_file(beside_packs, same_file, kind,
                               lambda clip, text: node("PCTextEncode", clip=clip, text=before + text))


@pytest.mark.pack(PROMPT_CONTROL)
def test_prompt_control_schedules(beside_packs, same_file):
    assert_word_means_the_file(beside_packs, same_file, "sd15", lambda clip, text: node(
        "PCLazyTextEncode", clip=clip, text=f"[{text}:a cat:0.5] (at night:1.1)"))


@pytest.mark.pack(PPM)
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
@pytest.mark.parametrize("class_type", ["CLIPTextEncodeBREAK", "CLIPTextEncode"])
def test_negpip_encodes(beside_packs, same_file, kind, class_type):
    same_file(kind)
    graph = {**scene(kind), "word": node("CLIPNegPip", model=["1", 0], clip=["3", 0]),
             "file": node("CLIPNegPip", model=["1", 0], clip=["1", 1])}
    found = []
    for clip, name in (("word", WORD), ("file", FILE)):
        graph["text"] = node(class_type, clip=[clip, 1], text=f"a {name} on (grass:-1.0)")
        found.append(beside_packs(graph, {"c": ["text", 0]}).values["c"][0][0])
    assert found[0].shape[1] == 154 and torch.equal(*found)


@pytest.mark.pack(PPM)
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
@pytest.mark.parametrize("last", ["record", "negpip"])
def test_negpip_and_recorded_attention(beside_packs, kind, last):
    """With positive weights NegPip draws the same picture, and so the maps are the same; one order after the other."""
    def run(model: list, clip: list, graph: dict) -> Record:
        made = {**scene(kind), **graph,
                "text": node("PersonalizeEncodeWithSpans", clip=clip, prompt=f"a {WORD} on grass", words="grass"),
                "none": node("CLIPTextEncode", clip=clip, text=""), "size": node(
                    "EmptyLatentImage", width=128, height=128, batch_size=1),
                "draw": node("KSampler", model=model, positive=["text", 0], negative=["none", 0], seed=1, steps=2,
                             cfg=5.0, latent_image=["size", 0], sampler_name="euler", scheduler="normal", denoise=1.0)}
        values = beside_packs(made, {"record": ["record", 1], "latent": ["draw", 0]}).values
        return values["record"].sampling(values["latent"]["samples"])

    settings = {"words": "", "layers": "all", "layer_numbers": "", "keep": "every step", "start_percent": 0.0,
                "end_percent": 1.0}
    plain = run(["record", 0], ["3", 0], {"record": node("PersonalizeRecordAttention", model=["1", 0], **settings)})
    first = ["negpip", 0] if last == "record" else ["1", 0]
    graph = {"record": node("PersonalizeRecordAttention", model=first, **settings),
             "negpip": node("CLIPNegPip", model=["1", 0] if last == "record" else ["record", 0], clip=["3", 0])}
    beside = run([last, 0], ["negpip", 1], graph)
    assert set(beside.words) == {WORD, "grass"} == set(plain.words) and beside.layers == plain.layers
    assert (beside.result - plain.result).abs().max() < 1e-4 * plain.result.std()
    for word in plain.words:
        found, expected = beside.mean_map(word), plain.mean_map(word)
        assert (found - expected).abs().max() < 2e-3 * expected.max()  # kept in float16


@pytest.mark.pack(PPM)
def test_negpip_and_orthogonalize(beside_packs):
    graph = {**scene(), "negpip": node("CLIPNegPip", model=["1", 0], clip=["3", 0]),
             "text": node("PersonalizeEncodeWithSpans", clip=["negpip", 1], prompt=f"a {WORD} on grass", words=""),
             "basis": node("PersonalizeOrthogonalize", conditioning=["text", 0], words="dog", strength=1.0,
                           basis="words", last_tokens=2)}
    with pytest.raises(PromptFailed, match="holds every token twice, as CLIP NegPip encodes prompts"):
        beside_packs(graph, {"c": ["basis", 0]})


@pytest.mark.pack(SMZ)
@pytest.mark.parametrize("parser", ["comfy", "comfy++", "A1111", "full", "compel", "fixed attention"])
def test_smz(beside_packs, caplog, parser):
    """It splits prompts by itself: the word is not understood there, which is said, and is again afterwards."""
    graph = {**scene(),
             "smz": node("smZ CLIPTextEncode", clip=["3", 0], text=f"a {WORD}", parser=parser, **SMZ_SETTINGS),
             "stock": node("CLIPTextEncode", clip=["3", 0], text=f"a {WORD}")}
    before = beside_packs(graph, {"c": ["stock", 0]}).values["c"][0][0]
    assert beside_packs(graph, {"c": ["smz", 0]}).values["c"]
    assert any("this node splits prompts by rules of its own" in message for message in caplog.messages)
    assert torch.equal(beside_packs(graph, {"s": ["smz", 0], "c": ["stock", 0]}).values["c"][0][0], before)
