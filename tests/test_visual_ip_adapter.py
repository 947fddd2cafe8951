"""IP-Adapter's attention against hooks by hand; beside other patches, guiders and branches."""
from __future__ import annotations

import pytest
import torch

from personalize.nodes.visual_prompts.added_attention import with_added_attention
from personalize.nodes.visual_prompts.ip_adapter_attention import token_attention
from personalize.nodes.visual_prompts.ip_adapter_files import read_ip_adapter
from personalize.nodes.visual_prompts.nodes_ip_adapter import PersonalizeApplyIPAdapter
from personalize.nodes.visual_prompts.tokens import VisualTokens
from support import companions
from support.inprocess import load_computing_in
from support.ip_adapter_by_hand import SD15, added_by_hand, blocks_in_file_order
from support.ip_adapter_files import PROMPT, TABLES, official, saved
from support.sampling import difference, encoded, guided, sample

CLOSE = 1e-5


@pytest.fixture(params=sorted(TABLES))
def family(request, exact):
    """(model in float64, clip, order of the files' pairs) of SD1.5 and of SDXL."""
    checkpoint = exact(request.param)
    return checkpoint.model, checkpoint.clip, TABLES[request.param]


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


# ---------------------------------------------------------------------------------------------------------- attention
@pytest.mark.smoke
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
    patched = PersonalizeApplyIPAdapter.execute(model, adapter, tokens, weight, 0.0, 1.0).args[0]
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

    got = drawn(PersonalizeApplyIPAdapter.execute(model, adapter, tokens, 1.0, 0.0, 1.0).args[0])
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

    got = drawn(PersonalizeApplyIPAdapter.execute(model, adapter, tokens, 1.0, 0.0, 1.0).args[0])
    by_row = {2: [tokens.negative[0], tokens.vectors[0]], 1: [tokens.negative[0]]}
    with added_by_hand(model, table, content, by_row, 1.0):
        expected = drawn(model)
    assert difference(got, expected) < CLOSE and difference(got, drawn(model)) > 0.01


def test_areas_of_the_positive_prompt(adapted):
    """ComfyUI gives the negative side a copy of an area that it lacks, with the positive one's id."""
    model, positive, negative, table, content, adapter, tokens = adapted
    left, right = ([[tensor, {**options, "area": (16, 8, 0, x), "strength": 1.0}] for tensor, options in positive]
                   for x in (0, 8))
    patched = PersonalizeApplyIPAdapter.execute(model, adapter, tokens, 1.0, 0.0, 1.0).args[0]
    got = sample(patched, [*left, *right], negative)
    no, yes = tokens.negative[0], tokens.vectors[0]
    with added_by_hand(model, table, content, {4: [no, no, yes, yes], 1: [no]}, 1.0):
        expected = sample(model, [*left, *right], negative)
    assert difference(got, expected) < CLOSE


def test_rows_without_tokens_of_their_own_stay_as_they_are(adapted):
    model, positive, negative, table, content, adapter, tokens = adapted
    alone = VisualTokens(tokens.vectors[:1], "IP-Adapter")
    got = sample(PersonalizeApplyIPAdapter.execute(model, adapter, alone, 1.0, 0.0, 1.0).args[0], positive, negative)
    with added_by_hand(model, table, content, [torch.zeros_like(tokens.vectors[0]), tokens.vectors[0]], 1.0):
        expected = sample(model, positive, negative)  # zero tokens have zero values
    assert difference(got, expected) < CLOSE


def test_off_and_outside_the_window_is_bit_identical(adapted):
    model, positive, negative, *_, adapter, tokens = adapted
    plain = sample(model, positive, negative, steps=3)

    def with_window(weight, start, end):
        patched = PersonalizeApplyIPAdapter.execute(model, adapter, tokens, weight, start, end).args[0]
        return sample(patched, positive, negative, steps=3)

    assert torch.equal(with_window(0.0, 0.0, 1.0), plain)
    assert torch.equal(with_window(1.0, 0.6, 0.9), plain)  # no step of three
    with pytest.raises(ValueError, match="start_percent .* is not before end_percent"):
        with_window(1.0, 0.5, 0.5)
    whole, late, early = with_window(1.0, 0.0, 1.0), with_window(1.0, 0.6, 1.0), with_window(1.0, 0.0, 0.6)
    assert len({tuple(result.flatten().tolist()) for result in (plain, whole, late, early)}) == 4
    assert torch.equal(sample(model, positive, negative, steps=3), plain)


@pytest.mark.parametrize("kind", companions.KINDS)
def test_composes(kind, adapted):
    model, positive, negative, table, content, adapter, tokens = adapted
    composed, with_companion = companions.composed(
        kind, model, positive, lambda m: PersonalizeApplyIPAdapter.execute(m, adapter, tokens, 1.0, 0.0, 1.0).args[0])
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
    plain, adapted = ([sample(patch(model), positive, negative)
                       for model in (load_computing_in(dtype, "sd15.safetensors"),
                                                                             sd15.model)]
                      for patch in (lambda m: m, lambda m: PersonalizeApplyIPAdapter.execute(
                          m, adapter, tokens, 1.0, 0.0, 1.0).args[0]))
    assert difference(*adapted) < 2 * difference(*plain) < 0.5 * difference(adapted[1], plain[1])


def test_two_adapters_add_up(adapted):
    model, positive, negative, _table, _content, adapter, tokens = adapted
    half = PersonalizeApplyIPAdapter.execute(model, adapter, tokens, 0.5, 0.0, 1.0).args[0]
    twice = sample(PersonalizeApplyIPAdapter.execute(half, adapter, tokens, 0.5, 0.0, 1.0).args[0], positive, negative)
    once = sample(PersonalizeApplyIPAdapter.execute(model, adapter, tokens, 1.0, 0.0, 1.0).args[0], positive, negative)
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
        return PersonalizeApplyIPAdapter.execute(m, adapter, tokens, 1.0, 0.0, 1.0).args[0]

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
        def branch_patches(self, call):
            return Patches()

        picture_patches = branch_patches

        def finished(self, picture, branch):
            ends.append((picture, branch))

    patched = PersonalizeApplyIPAdapter.execute(model, adapter, tokens, 1.0, 0.0, 1.0, branch_tokens=other).args[0]
    got = sample(with_branch(patched, Branch(positive, negative), lambda *_: Watcher()), positive, negative)
    alone = {id(each): sample(PersonalizeApplyIPAdapter.execute(model, adapter, each, 1.0, 0.0, 1.0).args[0], positive,
                              negative) for each in (tokens, other)}
    (_, branch), = ends
    assert difference(got, alone[id(tokens)]) < CLOSE and difference(branch, alone[id(other)]) < CLOSE
    assert difference(got, branch) > 0.01
