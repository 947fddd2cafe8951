"""What tells two MODELs, CLIPs and VAEs apart, and what must not."""
from __future__ import annotations

import copy
import functools
import struct
from dataclasses import dataclass

import comfy.hooks
import comfy.sd
import comfy_extras.nodes_freelunch as freelunch
import comfy_extras.nodes_model_advanced as advanced
import pytest
import torch

from personalize.nodes.recording.nodes_record import PersonalizeRecordAttention
from personalize.nodes.text.apply import apply_concepts
from personalize.nodes.text.concept import Concept
from personalize.nodes.training import fingerprint as fingerprints
from personalize.nodes.training.description import clip_fingerprint, model_fingerprint, vae_fingerprint
from personalize.nodes.training.fingerprint import fingerprint
from personalize.nodes.training.run_key import run_key
from personalize.nodes.visual_prompts.added_attention import with_added_attention
from support.companions import with_lora
from support.trainings import make_job, sample

pytestmark = pytest.mark.usefixtures("execute")
KEY = "diffusion_model.output_blocks.5.1.transformer_blocks.0.attn2.to_v.weight"


def multiplied(by):
    """A patch that multiplies the values by a number which it encloses."""
    return lambda n, c, v, o: (n, c, v * by)


def patched(model, patch):
    model = model.clone()
    model.set_model_attn2_patch(patch)
    return model


def with_adapter(model, alpha=1.0, strength=1.0):
    weight = model.model.state_dict()[KEY]
    stem = KEY.removesuffix(".weight")
    lora = {f"{stem}.lora_up.weight": torch.ones(weight.shape[0], 2),
            f"{stem}.lora_down.weight": torch.ones(2, weight.shape[1]), f"{stem}.alpha": torch.tensor(alpha)}
    return comfy.sd.load_lora_for_models(model, None, lora, strength, 0.0)[0]


def with_difference(model, kind="diff", strength=1.0, of_model=1.0):
    clone = model.clone()
    clone.add_patches({KEY: (kind, (torch.ones_like(model.model.state_dict()[KEY]),))}, strength, of_model)
    return clone


def with_bypass(model):
    weight = model.model.state_dict()[KEY]
    stem = KEY.removesuffix(".weight")
    lora = {f"{stem}.lora_up.weight": torch.ones(weight.shape[0], 2),
            f"{stem}.lora_down.weight": torch.ones(2, weight.shape[1])}
    return comfy.sd.load_bypass_lora_for_models(model, None, lora, 1.0, 0.0)[0]


def with_module(model, value):
    module = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(module.weight, value), torch.nn.init.zeros_(module.bias)
    return patched(model, lambda n, context, value, options: (n, context, module(value)))


class Scaling:
    """A patch as packs write them: an object with settings, or a method of one."""

    def __init__(self, by):
        self.by = by

    def __call__(self, n, context, value, options):
        return n, context, value * self.by

    def patch(self, n, context, value, options):
        return self(n, context, value, options)


def scaled(n, context, value, options, by=1.0):
    return n, context, value * by


def wrapped(model, *keys):
    model = model.clone()
    for key in keys:
        model.add_wrapper_with_key("diffusion_model", key, lambda executor, *args, **kwargs: executor(*args, **kwargs))
    return model


def with_record(model):
    return PersonalizeRecordAttention.execute(model, "dog", "all", "", "every step", 0.0, 1.0)[0]


def added(layer, attention, n, context, options):
    return torch.ones_like(n)


def discrete(model, kind, zero_terminal):
    return advanced.ModelSamplingDiscrete().patch(model, kind, zero_terminal)[0]


def continuous(model, largest):
    return advanced.ModelSamplingContinuousEDM().patch(model, "edm", largest, 0.002)[0]


MODELS = {
    "plain": lambda m: m,
    "LoRA": lambda m: with_lora(m, 0.7), "LoRA's strength": lambda m: with_lora(m, 0.8),
    "adapter": with_adapter, "adapter's alpha": lambda m: with_adapter(m, alpha=2.0), "bypass": with_bypass,
    "difference": with_difference, "set in place of added": lambda m: with_difference(m, "set"),
    "strength of the model": lambda m: with_difference(m, of_model=0.9),
    "noise levels": lambda m: discrete(m, "eps", False), "velocity": lambda m: discrete(m, "v_prediction", False),
    "zero terminal": lambda m: discrete(m, "v_prediction", True),
    "EDM": lambda m: continuous(m, 120.0), "EDM's range": lambda m: continuous(m, 100.0),
    "function": lambda m: patched(m, lambda n, c, v, o: (n, c, v * 0.5)),
    "another number in it": lambda m: patched(m, lambda n, c, v, o: (n, c, v * 0.6)),
    "another operation in it": lambda m: patched(m, lambda n, c, v, o: (n, c, v + 0.5)),
    "what a function encloses": lambda m: patched(m, multiplied(0.5)),
    "another such": lambda m: patched(m, multiplied(0.6)),
    "object": lambda m: patched(m, Scaling(1.0)), "its setting": lambda m: patched(m, Scaling(2.0)),
    "method": lambda m: patched(m, Scaling(1.0).patch),
          "its object's setting": lambda m: patched(m, Scaling(2.0).patch),
    "default argument": lambda m: patched(m, scaled),
    "partial": lambda m: patched(m, functools.partial(scaled, by=3.0)),
    "its argument": lambda m: patched(m, functools.partial(scaled, by=2.0)),
    "module's weights": lambda m: with_module(m, 1.0), "other weights": lambda m: with_module(m, 2.0),
    "wrappers": lambda m: wrapped(m, "a", "b"), "wrappers in another order": lambda m: wrapped(m, "b", "a"),
    "FreeU": lambda m: freelunch.FreeU_V2.execute(m, 1.3, 1.4, 0.9, 0.2)[0],
    "FreeU's number": lambda m: freelunch.FreeU_V2.execute(m, 1.3, 1.5, 0.9, 0.2)[0],
    "record": with_record, "added attention": lambda m: with_added_attention(m, added, (0.0, 1.0)),
    "its window": lambda m: with_added_attention(m, added, (0.0, 0.5)),
}
SAMPLED = ("LoRA", "bypass", "zero terminal", "FreeU", "record", "added attention")


def test_no_two_models_share_a_key(sd15):
    keys = {name: model_fingerprint(made(sd15.model)) for name, made in MODELS.items()}
    again = {name: model_fingerprint(made(sd15.model)) for name, made in MODELS.items()}
    assert again == keys, "the same graph, executed anew"
    assert len(set(keys.values())) == len(keys), [name for name in keys if list(keys.values()).count(keys[name]) > 1]


@pytest.mark.parametrize("name", SAMPLED)
def test_loading_and_sampling_leave_the_key(sd15, name):
    """Also that of the model itself while a patched clone has its weights and noise levels in the shared U-Net."""
    model = MODELS[name](sd15.model)
    keys = [model_fingerprint(model), model_fingerprint(sd15.model), clip_fingerprint(sd15.clip)]
    sample(model, sd15.clip)
    assert [model_fingerprint(model), model_fingerprint(sd15.model), clip_fingerprint(sd15.clip)] == keys


@pytest.mark.parametrize("part", ["model", "clip", "vae"])
def test_one_bit_of_any_weight_is_another_key(sd15, part):
    """The first, the middle and the last value of a small and of the largest weight."""
    module, key = {"model": (sd15.model.model.diffusion_model, lambda: model_fingerprint(sd15.model)),
                   "clip": (sd15.clip.cond_stage_model, lambda: clip_fingerprint(sd15.clip)),
                   "vae": (sd15.vae.first_stage_model, lambda: vae_fingerprint(sd15.vae))}[part]
    before = key()
    weights = sorted(module.parameters(), key=torch.Tensor.numel)
    with torch.inference_mode():
        for weight in (weights[0], weights[-1]):
            bits = weight.data.view(-1).view(torch.uint8)
            for place in (0, len(bits) // 2, len(bits) - 1):
                bits[place] ^= 1
                assert key() != before, (tuple(weight.shape), place)
                bits[place] ^= 1
    assert key() == before


def test_large_tensors_by_hand(monkeypatch):
    """The weighted sum of one 8 MiB part against Python's own whole numbers; SplitMix64's first values are
    published."""
    values = torch.randint(-2**63, 2**63 - 1, (2**17 + 1,), generator=torch.Generator().manual_seed(0))
    factors = [_split_mix(i) | 1 for i in range(1, len(values) + 1)]
    expected = sum(x * w for x, w in zip(values.tolist(), factors)) % 2**64
    assert fingerprints._WeightedSums().of(values) == struct.pack("<Q", expected)
    assert _split_mix(1) == 0xe220a8397b1dcdaf


def _split_mix(i: int) -> int:
    mixed = i * 0x9e3779b97f4a7c15 % 2**64
    mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9 % 2**64
    mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111eb % 2**64
    return mixed ^ mixed >> 31


def test_tensors_of_any_kind():
    wide = torch.arange(2**19, dtype=torch.float32)
    same = [wide, wide.clone(), torch.stack([wide, wide], 1)[:, 0], torch.cat([wide[:1], wide])[1:],
            torch.nn.Parameter(wide)]
    assert len({fingerprint(each) for each in same}) == 1
    swapped = wide.clone()
    swapped[[3, 7]] = wide[[7, 3]]
    other = [wide, swapped, wide.reshape(2, -1), wide.view(torch.int32), wide[:-1], wide.bfloat16(), -wide,
             torch.zeros(0), torch.tensor(0.0), torch.zeros(3, dtype=torch.bool),
             torch.zeros(3, dtype=torch.float8_e4m3fn),
             torch.zeros(3, dtype=torch.complex64), torch.zeros(3, device="meta")]
    assert len({fingerprint(each) for each in other}) == len(other)


def test_plain_values():
    same = [((1, 1.0), [1, 1.0]), (0.0, -0.0), ({"a": 1, "b": 2}, {"b": 2, "a": 1}), (float("nan"), float("nan")),
            (fingerprints.folder_paths.base_path + "/models/x", "/models/x")]
    for one, other in same:
        assert fingerprint(one) == fingerprint(other)
    different = [1, True, "1", None, "", [], [[]], {}, ["a", "b"], ["a;str:b"], ["ab"], {"a": "b"}, {1: 2}, {"1": 2},
                 0.1,
                 0.1 + 1e-17 * 4, float("inf"), float("nan"), 1e300, torch.float16, {1, 2}]
    assert len({fingerprint(each) for each in different}) == len(different)
    with pytest.raises(TypeError, match="object has no fingerprint"):
        fingerprint(object())


def test_a_field_that_changes_nothing_is_left_out():
    @dataclass(frozen=True)
    class Value:
        counts: int = 0
        shown: str = ""
        NOT_IN_KEY = ("shown",)

    assert fingerprint(Value(1, "a")) == fingerprint(Value(1, "b")) != fingerprint(Value(2, "a"))


def test_values_within_themselves_end():
    def patch(n, context, value, options):
        return patch.later

    patch.later = patch
    assert fingerprints.Digests(lambda value: vars(value)).of(patch)
    endless = []
    for _ in range(5000):
        endless = [endless]
    assert fingerprint(endless)


def with_word(clip, value, placeholder="<my-cat>"):
    return apply_concepts(clip, [Concept(placeholder, "cat",
                                         "cat").with_vectors({"clip_l": torch.full((1, 32), value)})])


def skipped(clip):
    clip = clip.clone()
    clip.clip_layer(-2)
    return clip


def without_weights(clip):
    clip = clip.clone()
    clip.tokenizer = copy.copy(clip.tokenizer)
    clip.tokenizer.clip_l = copy.copy(clip.tokenizer.clip_l)
    clip.tokenizer.clip_l.disable_weights = True
    return clip


def with_option(clip):
    clip = clip.clone()
    clip.set_tokenizer_option("min_padding", 1)
    return clip


def hooked(clip, strength):
    weight = next(iter(clip.cond_stage_model.state_dict()))
    hooks = comfy.hooks.create_hook_lora({f"text_encoders.{weight}": torch.ones(1)}, strength, strength)
    clip = clip.clone()
    clip.apply_hooks_to_conds = hooks
    return clip


def replaced(clip):
    clip = clip.clone()
    clip.encode_from_tokens = lambda *args, **kwargs: None
    return clip


CLIPS = {"plain": lambda c: c, "word": lambda c: with_word(c, 1.0), "its vector": lambda c: with_word(c, 2.0),
         "its name": lambda c: with_word(c, 1.0, "<my-dog>"), "skipped": skipped, "without weights": without_weights,
         "option": with_option, "hook": lambda c: hooked(c, 1.0), "hook's strength": lambda c: hooked(c, 0.5),
         "replaced": replaced}


def test_no_two_clips_share_a_key(sd15):
    keys = [{name: clip_fingerprint(made(sd15.clip)) for name, made in CLIPS.items()} for _ in range(2)]
    assert keys[0] == keys[1] and len(set(keys[0].values())) == len(CLIPS)


def test_the_type_in_which_the_vae_computes(sd15):
    other = copy.copy(sd15.vae)
    other.vae_dtype = torch.bfloat16
    assert vae_fingerprint(other) != vae_fingerprint(sd15.vae)


def test_the_type_in_which_the_model_computes(sd15, monkeypatch):
    job = make_job(sd15, "computes")
    before = run_key(job)
    monkeypatch.setattr(sd15.model.model, "manual_cast_dtype", torch.bfloat16)
    assert run_key(job) != before
