"""Nodes that look inside, run by ComfyUI's executor."""
from __future__ import annotations

import pytest
import torch

from support.failures import PromptFailed

PROMPT = "a photo of a dog in a red hat"


def graph(checkpoint="sd15.safetensors", encoder="spans", batch=1, words="dog\nred hat", record=(), sampler=(),
          show=()):
    """Checkpoint 1, prompts 2 and 3, latent 4, Record Attention 5, sampler 6, decoded 7, Show Attention 8."""
    positive = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": PROMPT}}
    if encoder == "spans":
        positive = {"class_type": "PersonalizeEncodeWithSpans", "inputs": {
            "clip": ["1", 1], "prompt": PROMPT, "words": "dog, red hat"}}
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint}},
        "2": positive,
        "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": batch}},
        "5": {"class_type": "PersonalizeRecordAttention", "inputs": {
            "model": ["1", 0], "words": words, "layers": "all", "layer_numbers": "", "keep": "every step",
            "start_percent": 0.0, "end_percent": 1.0, **dict(record)}},
        "6": {"class_type": "KSampler", "inputs": {
            "model": ["5", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0], "seed": 1,
            "steps": 2, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0, **dict(sampler)}},
        "7": {"class_type": "VAEDecode", "inputs": {"samples": ["6", 0], "vae": ["1", 2]}},
        "8": {"class_type": "PersonalizeShowAttention", "inputs": {
            "record": ["5", 1], "image": ["7", 0], "latent": ["6", 0], "show": "mean", "scale": "each map",
            "colours": "viridis", "opacity": 0.6, "longest_side": 0, **dict(show)}}}


@pytest.fixture(scope="module")
def session(execute, tiny_checkpoints):
    """Prompts of this file share what ComfyUI has cached, as those of one user do."""
    return execute.session()


SHOWN = {"heat": ["8", 0], "grid": ["8", 1], "maps": ["8", 2], "record": ["5", 1], "latent": ["6", 0],
         "image": ["7", 0]}


# ------------------------------------------------------------------------------------------------ Show Attention
@pytest.mark.parametrize("checkpoint, encoder", [
    ("sd15.safetensors", "spans"), ("sd15.safetensors", "foreign"), ("sdxl.safetensors", "spans"),
    ("sd21.safetensors", "foreign"), ("z_image.safetensors", "spans"), ("lumina2.safetensors", "foreign")])
def test_heat_maps_of_a_sampled_batch(session, checkpoint, encoder):
    record = {} if encoder == "spans" else {"clip": ["1", 1], "prompt": PROMPT}
    run = session(graph(checkpoint, encoder, batch=2, record=record), SHOWN)
    record, latent = run.values["record"], run.values["latent"]["samples"]
    sampling = record.sampling(latent)
    assert torch.equal(sampling.result, latent)
    assert run.values["heat"].shape == (4, 128, 128, 3) and run.values["maps"].shape == (4, 128, 128)
    maps = run.values["maps"].unflatten(0, (2, 2))
    for index, word in enumerate(("dog", "red hat")):
        large = torch.nn.functional.interpolate(sampling.mean_map(word)[:, None], (128, 128), mode="bilinear")[:, 0]
        low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
        assert torch.allclose(maps[:, index], (large - low) / (high - low), atol=1e-5)
    assert [len(run.ui["8"]["images"]), run.values["grid"].shape[0]] == [1, 1]


def test_pictures_with_and_without_recording_are_equal(session):
    prompt = graph(batch=2)
    recorded = session(prompt, {"image": ["7", 0]}).values["image"]
    prompt["6"]["inputs"]["model"] = ["1", 0]
    del prompt["8"], prompt["5"]
    assert torch.equal(session(prompt, {"image": ["7", 0]}).values["image"], recorded)


def test_each_step_and_each_layer(session):
    step = session(graph(show={"show": "each step", "scale": "absolute"}), SHOWN).values
    layer = session(graph(show={"show": "each layer", "scale": "absolute"}), SHOWN).values
    assert step["record"] is layer["record"], "only Show Attention had to run again"
    sampling = step["record"].sampling()
    assert len(step["maps"]) == 2 * 2 and len(layer["maps"]) == 2 * len(sampling.layers)
    for index, (word, number) in enumerate((word, number) for word in ("dog", "red hat") for number in (0, 1)):
        expected = sampling.mean_map(word, number).mean()
        assert float(step["maps"][index].mean()) == pytest.approx(float(expected), rel=1e-3)
    for index, (word, of_layer) in enumerate((w, each) for w in ("dog", "red hat") for each in sampling.layers):
        expected = sampling.map(word, of_layer).mean()
        assert float(layer["maps"][index].mean()) == pytest.approx(float(expected), rel=1e-3)
    compared = session(graph(show={"show": "each step", "scale": "each word"}), SHOWN).values["maps"]
    compared = compared.unflatten(0, (2, 2))
    assert compared.amin((1, 2, 3)).tolist() == [0, 0] and compared.amax((1, 2, 3)).tolist() == [1, 1]
    assert (compared.amax((2, 3)) < 1).any(), "steps of a word are on one scale"


def test_overlay_and_size(session):
    picture = session(graph(show={"opacity": 0.0}), SHOWN).values
    assert torch.allclose(picture["heat"][0], picture["image"][0], atol=1e-6)
    alone = graph(show={"longest_side": 64})
    del alone["8"]["inputs"]["image"]
    heat = session(alone, SHOWN).values["heat"]
    assert heat.shape == (2, 64, 64, 3)
    assert not torch.allclose(heat[0], heat[1])


def test_queued_prompts_and_branches_do_not_mix(execute, tiny_checkpoints):
    """One Record Attention, two samplers on its MODEL, and a second prompt with another seed."""
    session = execute.session()

    def two_samplers(seed):
        prompt = graph(sampler={"seed": seed}, show={"scale": "absolute"})
        prompt["16"] = {**prompt["6"], "inputs": {**prompt["6"]["inputs"], "seed": 50, "steps": 3}}
        prompt["17"] = {**prompt["7"], "inputs": {"samples": ["16", 0], "vae": ["1", 2]}}
        prompt["18"] = {**prompt["8"], "inputs": {**prompt["8"]["inputs"], "image": ["17", 0], "latent": ["16", 0]}}
        return prompt

    wanted = {**SHOWN, "other": ["18", 2]}
    first, second = (session(two_samplers(seed), wanted).values for seed in (1, 2))
    alone = execute(graph(sampler={"seed": 2}, show={"scale": "absolute"}), SHOWN).values
    assert torch.equal(second["maps"], alone["maps"])
    assert torch.equal(first["other"], second["other"])
    expected = execute(graph(sampler={"seed": 50, "steps": 3}, show={"scale": "absolute"}), SHOWN).values["maps"]
    assert torch.equal(first["other"], expected) and not torch.equal(first["maps"], second["maps"])


def test_placeholder_and_class_word_need_not_be_named(session):
    prompt = graph(words="")
    prompt["20"] = {"class_type": "PersonalizeConcept", "inputs": {
        "placeholder": "<my-dog>", "class_words": "dog", "initial_words": "", "vector_count": 2, "embedding": "none"}}
    prompt["2"]["inputs"] |= {"prompt": "a photo of a <my-dog> dog in a red hat", "words": "", "concept": ["20", 0]}
    values = session(prompt, {**SHOWN, "conditioning": ["2", 0]}).values
    run = values["record"].sampling(values["latent"]["samples"])
    assert run.words == ("<my-dog>", "dog") and len(values["heat"]) == 2
    prompt["5"]["inputs"]["words"] = "<my-dog>, hat"  # a word that Encode with Spans was not told to remember
    values = session(prompt, SHOWN).values
    assert values["record"].sampling().words == ("<my-dog>", "hat")


# ------------------------------------------------------------------------------------------------ Attention of Latent
def latent_graph(**inputs):
    """As graph(), with a picture's latent looked at in place of a sampler."""
    prompt = graph(batch=1)
    del prompt["5"], prompt["8"]
    prompt["6"]["inputs"]["model"] = ["1", 0]
    prompt["9"] = {"class_type": "PersonalizeAttentionOfLatent", "inputs": {
        "model": ["1", 0], "conditioning": ["2", 0], "latent": ["6", 0], "words": "dog", "timesteps": "200, 600, 400",
        "seed": 5, "layers": "all", "layer_numbers": "", "keep": "every step", **inputs}}
    prompt["10"] = {"class_type": "PersonalizeShowAttention", "inputs": {
        "record": ["9", 0], "show": "mean", "scale": "absolute", "colours": "heat", "opacity": 0.5,
        "longest_side": 0}}
    return prompt


@pytest.mark.parametrize("checkpoint", ["sd15", "sdxl", "sdxl_zsnr"])
def test_attention_of_a_given_latent_equals_a_single_pass(execute, tiny_checkpoints, load_checkpoint, checkpoint):
    """By hand: the latent noised by the schedule's own formula, one pass of the model with the prompt."""
    import comfy.model_management

    from personalize.nodes.families.find import unet_of
    from support.attention_by_hand import naive_attention, projections
    from support.sampling import noise_for

    prompt = latent_graph()
    prompt["1"]["inputs"]["ckpt_name"] = tiny_checkpoints[checkpoint]
    values = execute(prompt, {"record": ["9", 0], "latent": ["6", 0], "conditioning": ["2", 0]}).values
    sampling = values["record"].sampling()
    assert sampling.map_steps == (0, 1, 2) and sampling.steps == 3
    model = load_checkpoint(checkpoint).model
    latent = values["latent"]["samples"]
    context, options = values["conditioning"][0]
    base = model.model
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model])
        extra = {}
        if base.model_config.unet_config.get("adm_in_channels"):
            extra["y"] = base.encode_adm(pooled_output=options["pooled_output"], width=128, height=128, device="cpu",
                                         noise=latent)
        for step, timestep in enumerate((600, 400, 200)):
            sigma = base.model_sampling.sigma(torch.tensor([timestep]))
            noised = base.process_latent_in(latent) + sigma * noise_for(latent, 5)
            if checkpoint == "sdxl_zsnr":
                assert base.model_sampling.sigma_max > 1000
            with projections(unet_of(model).denoiser) as seen:
                base.apply_model(noised, sigma, c_crossattn=context, **extra)
            for layer in sampling.layers[::3]:
                heads, (query, key) = seen[layer.order]
                expected = naive_attention(query.float(), key.float(), heads).mean(1)[..., 5]
                assert torch.allclose(sampling.map("dog", layer, step).flatten(1), expected, rtol=5e-3, atol=1e-5)
    comfy.model_management.unload_all_models()


def test_attention_of_latent_is_shown_without_a_sampler(session, execute):
    values = session(latent_graph(), {"heat": ["10", 0], "maps": ["10", 2]}).values
    assert values["heat"].shape == (1, 128, 128, 3) and 0 < float(values["maps"].max()) < 1
    again = execute(latent_graph(), {"maps": ["10", 2]}).values["maps"]
    other = session(latent_graph(seed=6), {"maps": ["10", 2]}).values["maps"]
    assert torch.equal(values["maps"], again) and not torch.equal(again, other)


# ------------------------------------------------------------------------------------------------ masks
def mask_graph(**inputs):
    prompt = graph(batch=2)
    prompt["11"] = {"class_type": "PersonalizeSubjectMask", "inputs": {
        "record": ["5", 1], "image": ["7", 0], "latent": ["6", 0], "words": "dog", "mask_method": "Otsu",
        "threshold": 0.3, **inputs}}
    return prompt


WANTED = {"mask": ["11", 0], "preview": ["11", 1], "record": ["5", 1], "image": ["7", 0]}


@pytest.mark.parametrize("method, words", [("Otsu", "dog"), ("threshold", "dog"), ("Otsu", "dog, red hat")])
def test_subject_mask_parts_the_map(session, method, words):
    from skimage.filters import threshold_otsu

    values = session(mask_graph(words=words, mask_method=method, threshold=0.45), WANTED).values
    recorded = values["record"].sampling()
    mask = values["mask"]
    assert mask.shape == (2, 128, 128) and set(mask.unique().tolist()) == {0.0, 1.0}
    for found, map_ in zip(mask, sum(recorded.mean_map(word) for word in words.split(", "))):
        map_ = torch.nn.functional.interpolate(map_[None, None], (128, 128), mode="bilinear", antialias=True)[0, 0]
        low, high = map_.min(), map_.max()
        level = threshold_otsu(map_.double().numpy()) if method == "Otsu" else low + 0.45 * (high - low)
        assert torch.equal(found, (map_.double() > level).float())
    inside = mask[..., None].bool().expand(values["image"].shape)
    assert torch.equal(values["preview"][inside], values["image"][inside])
    assert torch.allclose(values["preview"][~inside], values["image"][~inside] * 0.3)


def test_given_mask_is_refined(session):
    """A mask of the upper left quarter, of another size than the picture: only there is foreground looked for."""
    prompt = mask_graph()
    prompt["12"] = {"class_type": "SolidMask", "inputs": {"value": 0.0, "width": 64, "height": 64}}
    prompt["13"] = {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 32, "height": 32}}
    prompt["14"] = {"class_type": "MaskComposite", "inputs": {
        "destination": ["12", 0], "source": ["13", 0], "x": 0, "y": 0, "operation": "add"}}
    free = session(prompt, WANTED).values["mask"]
    prompt["11"]["inputs"]["mask"] = ["14", 0]
    refined = session(prompt, WANTED).values["mask"]
    assert refined[:, 64:].sum() == 0 and refined[:, :, 64:].sum() == 0
    assert 0 < refined.sum() < 2 * 64 * 64 and not torch.equal(refined[:, :64, :64], free[:, :64, :64])
    prompt["11"]["inputs"]["mask"] = ["12", 0]
    with pytest.raises(PromptFailed, match="mask given for picture 1 is empty"):
        session(prompt, WANTED)


def test_masks_of_a_record_are_shown(session):
    """A test-side node hands over a record with masks as a patch leaves them."""
    import nodes

    from personalize.nodes.recording.record import Record

    masks = {0: torch.zeros(2, 16, 16), 3: torch.ones(1, 16, 16)}
    masks[0][0, :8] = 1.0

    class MaskRecord:
        RETURN_TYPES, FUNCTION, CATEGORY, INPUT_TYPES = ("PERSONALIZE_RECORD",), "give", "tests", classmethod(
            lambda cls: {"required": {"latent": ("LATENT",)}})

        def give(self, latent):
            record = Record("the swap")
            record.begin(2, (16, 16), 5, 8)
            for step, mask in masks.items():
                record.add_mask(step, mask)
            return (record,)

    nodes.NODE_CLASS_MAPPINGS["TestMaskRecord"] = MaskRecord
    try:
        prompt = graph(batch=2)
        prompt["9"] = {"class_type": "TestMaskRecord", "inputs": {"latent": ["4", 0]}}
        prompt["10"] = {"class_type": "PersonalizeShowMasks", "inputs": {
            "record": ["9", 0], "image": ["7", 0], "show": "each step", "opacity": 1.0}}
        wanted = {"masks": ["10", 0], "grid": ["10", 1]}
        shown = session(prompt, wanted).values["masks"]
        assert shown.shape == (4, 128, 128)
        assert torch.equal(shown[0], masks[0][0].repeat_interleave(8, 0).repeat_interleave(8, 1))
        assert [float(mask.mean()) for mask in shown] == [0.5, 1.0, 0.0, 1.0]
        prompt["10"]["inputs"]["show"] = "mean"
        assert [float(m.mean()) for m in session(prompt, wanted).values["masks"]] == [0.75, 0.5]
        prompt["10"]["inputs"]["show"] = "last step"
        assert session(prompt, wanted).values["masks"].mean() == 1
    finally:
        del nodes.NODE_CLASS_MAPPINGS["TestMaskRecord"]


# ------------------------------------------------------------------------------------------------ sentences
def changed(node, **inputs):
    prompt = graph()
    prompt[node]["inputs"].update(inputs)
    return prompt


FOREIGN = graph(encoder="foreign")
FAILURES = {
    "word that the prompt does not hold": (
        changed("5", words="cat"), "found no 'cat' in the positive conditioning.*connect clip and prompt"),
    "word that the given prompt does not hold": (
        changed("5", words="cat", clip=["1", 1], prompt=PROMPT), "word 'cat' of words is not in the prompt"),
    "clip without prompt": (changed("5", clip=["1", 1]), "clip is connected but prompt is empty"),
    "prompt without clip": (changed("5", prompt="a dog"), "prompt is filled in but clip is not connected"),
    "no words": (changed("5", words="", clip=["1", 1], prompt="a dog"), "words is empty"),
    "foreign conditioning": (graph(encoder="foreign", words=""), "does not say where words are.*Encode with Spans"),
    "foreign conditioning and words": (FOREIGN, "found no 'dog, red hat'"),
    "window upside down": (changed("5", start_percent=0.5, end_percent=0.5), "is not before end_percent"),
    "window without steps": (changed("5", start_percent=0.95, end_percent=0.97), "recorded nothing of 'dog, red hat'"),
    "layer that is not there": (
        changed("5", layers="by number", layer_numbers="3, 99"), "asks for layer 99, but the model has layers 0 to 15"),
    "layers by number without numbers": (changed("5", layers="by number"), "names none"),
    "numbers that are none": (changed("5", layers="by number", layer_numbers="three"), "holds 'three'"),
    "steps that were not kept": (
        {**changed("5", keep="mean over steps"), "8": changed("8", show="each step")["8"]}, "set keep to 'every step'"),
    "sampler on another MODEL": (
        changed("6", model=["1", 0]),
        "record of Record Attention is empty.*Connect its MODEL"),
    "more pictures than were recorded": ({
        **changed("8", image=["20", 0]),
        "20": {"class_type": "RepeatImageBatch", "inputs": {"image": ["7", 0], "amount": 3}}}, "differ in number")}


@pytest.mark.parametrize("case", FAILURES)
def test_what_cannot_work_is_said_in_a_sentence(session, case):
    prompt, said = FAILURES[case]
    with pytest.raises(PromptFailed, match=f"(?s){said}"):
        session(prompt)


def test_show_attention_without_the_sampler_is_refused(session):
    prompt = graph()
    del prompt["8"]["inputs"]["image"], prompt["8"]["inputs"]["latent"]
    with pytest.raises(PromptFailed, match="Neither image nor latent is connected"):
        session(prompt)


def test_record_that_is_gone_is_explained(execute, tiny_checkpoints):
    """The sampler's result comes from the cache while Record Attention has run anew, as after an eviction."""
    session = execute.session()
    session(graph(), SHOWN)
    outputs = session._executor.caches.outputs
    evicted = [key for key, entry in outputs.cache.items() if _holds_record(entry)]
    assert len(evicted) == 1
    del outputs.cache[evicted[0]]
    with pytest.raises(PromptFailed, match="came from ComfyUI's cache.*change the sampler's seed"):
        session(graph(show={"colours": "jet"}), SHOWN)
    assert session(graph(sampler={"seed": 9}), SHOWN).values["maps"].max() == 1


def _holds_record(entry) -> bool:
    from personalize.nodes.recording.record import Record

    return any(isinstance(value, Record) for output in entry.outputs for value in output)


@pytest.mark.parametrize("timesteps", ["", "20 steps", "1000", "-3"])
def test_timesteps_that_are_none(session, timesteps):
    with pytest.raises(PromptFailed, match="write whole numbers from 0 to 999"):
        session(latent_graph(timesteps=timesteps))


def test_mask_of_a_word_that_was_not_recorded(session):
    with pytest.raises(PromptFailed, match="found no 'cat'.*It has maps of: dog, red hat"):
        session(mask_graph(words="cat"))
    with pytest.raises(PromptFailed, match="Nothing in picture 1 stands out.*lower the threshold"):
        session(mask_graph(mask_method="threshold", threshold=1.0))


def test_layers_by_stride_and_number(session):
    strides = session(changed("5", layers="stride 4"), SHOWN).values["record"].sampling()
    assert {layer.stride for layer in strides.layers} == {4}
    numbers = session(changed("5", layers="by number", layer_numbers="3, 10-12"), SHOWN).values["record"].sampling()
    assert [layer.order for layer in numbers.layers] == [3, 10, 11, 12]
