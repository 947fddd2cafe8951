"""The recorder against naive loops, on the real U-Nets, and what it must leave alone."""
from __future__ import annotations

import contextlib

import pytest
import torch
import torch.utils.checkpoint
from comfy.ldm.modules.attention import SpatialTransformer
from torch.utils._python_dispatch import TorchDispatchMode

from personalize.nodes.attention import softmax
from personalize.nodes.families.find import unet_of
from personalize.nodes.recording.pass_recorder import AttentionRecorder, PassStopped, Wanted
from support.attention_by_hand import naive_attention, projections


class UNetRun:
    """A trainable copy of a tiny U-Net and inputs for it."""

    def __init__(self, model, rows=2, tokens=77, side=16, dtype=torch.float32):
        self.family = unet_of(model)
        self.unet, self.layers = self.family.denoiser, self.family.layers
        generator = torch.Generator().manual_seed(3)
        width = self.family.text_width
        self.x = torch.randn(rows, 4, side, side, generator=generator, dtype=dtype)
        self.t = torch.linspace(100, 700, rows)
        self.context = torch.randn(rows, tokens, width, generator=generator, dtype=dtype)
        self.y = None
        if self.unet.num_classes is not None:
            self.y = torch.randn(rows, self.unet.label_emb[0][0].in_features, generator=generator, dtype=dtype)

    def __call__(self, context=None, options=None):
        context = self.context if context is None else context
        return self.unet(self.x, self.t, context=context, y=self.y, transformer_options=dict(options or {}))


@pytest.fixture(params=["sd15", "sdxl"])
def run(request, load_checkpoint):
    return trainable(load_checkpoint(request.param).model)


@pytest.fixture
def run15(load_checkpoint):
    return trainable(load_checkpoint("sd15").model)


def trainable(model):
    for module in model.model.modules():
        for name, weight in list(module._parameters.items()):
            if weight is not None:
                module._parameters[name] = torch.nn.Parameter(weight.detach().float().clone(), requires_grad=False)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = buffer.clone()
    return UNetRun(model)


def hook_count(module):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


# ------------------------------------------------------------------------------------------------ values
@pytest.mark.smoke
def test_layers_are_in_execution_order(run):
    ran, hooks = [], []
    for layer in run.layers:
        attention = run.family.block(layer).attn2
        hooks.append(attention.register_forward_hook(lambda m, a, out, order=layer.order: ran.append(order)))
    run()
    for hook in hooks:
        hook.remove()
    assert ran == [layer.order for layer in run.layers] == list(range(len(run.layers)))


def test_maps_equal_naive_loops(run):
    layers = run.layers[::3]
    positions = ((1, 5, 76), (2, 2, 0))
    wanted = [Wanted(layers), Wanted(layers, "pixels", positions), Wanted(layers, "pixels")]
    with torch.no_grad(), projections(run.unet) as seen, AttentionRecorder(run.family, wanted) as rec:
        run()
    means, chosen, everything = rec.maps
    for i, layer in enumerate(layers):
        heads, (query, key) = seen[layer.order]
        expected = naive_attention(query, key, heads)
        assert means[i].dtype == torch.float32 and torch.allclose(means[i], expected.mean((1, 2)), atol=1e-6)
        assert torch.allclose(means[i].sum(-1), torch.ones(2))
        per_pixel = expected.mean(1)
        assert torch.allclose(everything[i], per_pixel, atol=1e-6)
        for row in range(2):
            assert torch.allclose(chosen[i][row], per_pixel[row][:, list(positions[row])], atol=1e-6)


def test_stride_says_how_large_the_maps_are(run):
    with torch.no_grad(), AttentionRecorder(run.family, [Wanted(run.layers, "pixels", ((0,),))]) as rec:
        run()
    assert [m.shape[1] for m in rec.maps[0]] == [(16 // layer.stride) ** 2 for layer in run.layers]


@pytest.mark.parametrize("keys_rows", [1, 2])
@pytest.mark.parametrize("tokens", [77, 154])
def test_keys_of_another_prompt(run, keys_rows, tokens):
    """Queries of the pass against keys that a second real pass computes from the other prompt."""
    other = torch.randn(keys_rows, tokens, run.context.shape[2], generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        with projections(run.unet) as first, AttentionRecorder(run.family, [Wanted(run.layers, keys=other)]) as rec:
            run()
        with projections(run.unet) as second:
            run(other.expand(2, -1, -1))
    for layer, found in zip(run.layers, rec.maps[0]):
        expected = naive_attention(first[layer.order][1][0], second[layer.order][1][1], layer.heads).mean((1, 2))
        assert found.shape == (2, tokens)
        assert torch.allclose(found, expected, atol=1e-6)


def test_long_prompt(run15):
    context = torch.randn(2, 154, run15.context.shape[2])
    wanted = [Wanted(run15.layers[:2])]
    with torch.no_grad(), projections(run15.unet) as seen, AttentionRecorder(run15.family, wanted) as rec:
        run15(context)
    for layer, found in zip(run15.layers, rec.maps[0]):
        assert torch.allclose(found, naive_attention(*seen[layer.order][1], layer.heads).mean((1, 2)), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_has_a_float32_softmax(run15, dtype):
    layer = run15.layers[0]
    query = torch.randn(2, 64, layer.channels).to(dtype) * 3
    key = torch.randn(2, 77, layer.channels).to(dtype) * 3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = softmax.mean_over_pixels(query, key, layer.heads)
    expected = naive_attention(query.double(), key.double(), layer.heads).mean((1, 2))
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), expected, atol=1e-6)


def test_unet_in_bfloat16(run15):
    run15.unet.to(torch.bfloat16)
    run15.unet.dtype = torch.bfloat16
    run15.x, run15.context = run15.x.bfloat16(), run15.context.bfloat16()
    run15.context.requires_grad_()
    with projections(run15.unet) as seen, AttentionRecorder(run15.family, [Wanted(run15.layers)]) as rec:
        run15()
    for layer, found in zip(run15.layers[:3], rec.maps[0]):
        query, key = (p.float() for p in seen[layer.order][1])
        assert torch.allclose(found, naive_attention(query, key, layer.heads).mean((1, 2)), atol=1e-6)
    sum(found[:, 3].sum() for found in rec.maps[0]).backward()
    assert run15.context.grad.dtype == torch.bfloat16 and run15.context.grad[:, 3].abs().sum() > 0


# ------------------------------------------------------------------------------------------------ gradients
@pytest.mark.parametrize("at_once", [1, 2 * 7 * 2, 2 ** 24], ids=["pixel by pixel", "two pixels", "all rows"])
@pytest.mark.parametrize("key_rows", [1, 3])
def test_gradients_equal_finite_differences(monkeypatch, at_once, key_rows):
    monkeypatch.setattr(softmax, "SCORES_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(3, 5, 8, dtype=torch.float64, generator=generator, requires_grad=True)
    key = torch.randn(key_rows, 7, 8, dtype=torch.float64, generator=generator, requires_grad=True)
    positions = torch.tensor([[0, 6], [2, 3], [1, 1]])
    assert torch.autograd.gradcheck(lambda q, k: softmax.mean_over_pixels(q, k, 2), (query, key))
    assert torch.autograd.gradcheck(lambda q, k: softmax.chosen_keys(q, k, 2, positions), (query, key))


def loss_of(run, context, wanted, until=None, options=None, keys=None):
    with AttentionRecorder(run.family, wanted, until) as rec, contextlib.suppress(PassStopped):
        run(context, options)
    return sum((found ** 2).sum() for maps in rec.maps for found in maps)


def test_gradient_on_the_real_unet_equals_autograd_through_plain_softmax(run):
    """The same maps by ordinary operations, as a test-side hook computes them, give the same gradient."""
    layers = run.layers
    context = run.context.clone().requires_grad_()
    ours, = torch.autograd.grad(loss_of(run, context, [Wanted(layers), Wanted(layers, "pixels", ((4, 9),))]), context)

    queries, total, hooks = {}, [], []

    def on_key(layer):
        def hook(module, inputs, key):
            query = queries[layer]
            split = [t.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for t in (query, key)]
            maps = torch.softmax(torch.einsum("rhpd,rhtd->rhpt", *split) / split[0].shape[-1] ** 0.5, -1)
            total.append((maps.mean((1, 2)) ** 2).sum() + (maps.mean(1)[..., [4, 9]] ** 2).sum())
        return hook

    for layer in layers:
        attention = run.family.block(layer).attn2
        hooks.append(attention.to_q.register_forward_hook(lambda m, a, out, i=layer: queries.__setitem__(i, out)))
        hooks.append(attention.to_k.register_forward_hook(on_key(layer)))
    run(context)
    for hook in hooks:
        hook.remove()
    plain, = torch.autograd.grad(sum(total), context)
    assert plain.abs().max() > 0
    assert torch.allclose(ours, plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))


def test_gradient_reaches_the_keys_of_another_prompt(run15):
    keys = torch.randn(1, 77, run15.context.shape[2]).requires_grad_()
    with AttentionRecorder(run15.family, [Wanted(run15.layers, keys=keys)]) as rec:
        run15()
    sum((found[:, 5] ** 2).sum() for found in rec.maps[0]).backward()
    assert keys.grad[0, 5].abs().sum() > 0


# ------------------------------------------------------------------------------------------------ checkpointing
def checkpointed(run, level):
    """Gradient checkpointing of every SpatialTransformer or of the whole U-Net; undo() ends it."""
    modules = [run.unet] if level == "unet" else [m for m in run.unet.modules() if isinstance(m, SpatialTransformer)]
    for module in modules:
        inner = module.forward

        def forward(*args, inner=inner, **kwargs):
            return torch.utils.checkpoint.checkpoint(inner, *args, use_reentrant=False, **kwargs)

        module.forward = forward


@pytest.mark.parametrize("level", ["transformer", "unet"])
@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("open_in_backward", [False, True])
def test_gradient_checkpointing(run15, level, stop, open_in_backward):
    context = run15.context.clone().requires_grad_()
    layers = run15.layers[:9] if stop else run15.layers
    wanted, until = [Wanted(layers), Wanted(layers[:4], "pixels", ((3,),))], layers[-1] if stop else None
    plain, = torch.autograd.grad(loss_of(run15, context, wanted, until), context)
    checkpointed(run15, level)
    with AttentionRecorder(run15.family, wanted, until) as rec:
        with contextlib.suppress(PassStopped):
            output = run15(context)
        first = rec.maps
        total = sum((found ** 2).sum() for maps in rec.maps for found in maps) + (0 if stop else 0 * output.sum())
        if open_in_backward:
            total.backward()
    if not open_in_backward:
        total.backward()
    assert all(a is b for x, y in zip(first, rec.maps) for a, b in zip(x, y))
    assert torch.allclose(context.grad, plain, rtol=1e-4, atol=1e-5 * float(plain.abs().max()))


# ------------------------------------------------------------------------------------------------ other packs, stopping
def test_outputs_are_bit_identical(run):
    with torch.no_grad():
        plain = run()
        with AttentionRecorder(run.family, [Wanted(run.layers), Wanted(run.layers, "pixels", keys=run.context[:1])]):
            recorded = run()
    assert torch.equal(plain, recorded)


def test_attention_replaced_by_another_pack(run15):
    """A replace patch never calls attn2 itself; projections still run, and its own output stays in place."""
    calls = []

    def foreign(q, k, v, extra_options):
        calls.append(q.shape)
        return torch.nn.functional.scaled_dot_product_attention(q, k.flip(1), v)

    layer = run15.layers[4]
    options = {"patches_replace": {"attn2": {layer.block: foreign}}}
    with torch.no_grad():
        plain = run15(options=options)
        with projections(run15.unet) as seen, AttentionRecorder(run15.family, [Wanted((layer,))]) as rec:
            recorded = run15(options=options)
    assert len(calls) == 2 and torch.equal(plain, recorded)
    assert torch.allclose(rec.maps[0][0], naive_attention(*seen[layer.order][1], layer.heads).mean((1, 2)), atol=1e-6)


def test_weight_wrappers_act_on_the_maps(load_checkpoint):
    """A weight wrapper on to_k, as ComfyUI's own training adds them, changes the recorded keys."""
    import comfy.model_management

    model = load_checkpoint("sd15").model
    layer = unet_of(model).layers[0]
    name = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"

    class Twice(torch.nn.Module):
        def __call__(self, weight):
            return weight * 2

    wrapped = model.clone()
    wrapped.add_weight_wrapper(name, Twice())
    maps = []
    with torch.no_grad():
        for patcher in (model, wrapped):
            comfy.model_management.load_models_gpu([patcher])
            run = UNetRun(patcher)
            key = unet_of(patcher).block(layer).attn2.to_k.weight
            with projections(run.unet) as seen, AttentionRecorder(unet_of(patcher), [Wanted((layer,))]) as rec:
                run()
            maps.append(rec.maps[0][0])
        plain_key = torch.nn.functional.linear(run.context, key.float()) * 2
        expected = naive_attention(seen[0][1][0], plain_key, layer.heads).mean((1, 2))
    comfy.model_management.unload_all_models()
    assert torch.allclose(maps[1], expected, atol=1e-5)
    assert not torch.allclose(maps[0], maps[1], atol=1e-5)


def test_until_stops_right_after_its_maps(run):
    last = run.layers[-4]
    ran, hooks = [], []
    for layer in run.layers:
        attention = run.family.block(layer).attn2
        hooks.append(attention.to_v.register_forward_hook(lambda m, a, out, order=layer.order: ran.append(order)))
    with torch.no_grad():
        with AttentionRecorder(run.family, [Wanted(run.layers)]) as rec:
            run()
        everything = rec.maps[0]
        ran.clear()
        with pytest.raises(PassStopped), AttentionRecorder(run.family, [Wanted(run.layers[:-3])], until=last) as rec:
            run()
    for hook in hooks:
        hook.remove()
    assert ran == [layer.order for layer in run.layers if layer.order < last.order]
    assert all(torch.equal(a, b) for a, b in zip(rec.maps[0], everything))


def test_nothing_is_left_behind(run15):
    before = hook_count(run15.unet)
    recorder = AttentionRecorder(run15.family, [Wanted(run15.layers)])
    with pytest.raises(ZeroDivisionError), recorder:
        assert hook_count(run15.unet) == before + 2 * len(run15.layers)
        raise ZeroDivisionError
    assert hook_count(run15.unet) == before
    with pytest.raises(PassStopped), torch.no_grad(), AttentionRecorder(run15.family, [], until=run15.layers[2]):
        run15()
    assert hook_count(run15.unet) == before
    with pytest.raises(RuntimeError, match="did not run"):
        _ = recorder.maps
    with pytest.raises(ValueError, match="stops at layer 2"):
        AttentionRecorder(run15.family, [Wanted(run15.layers)], until=run15.layers[2])


# ------------------------------------------------------------------------------------------------ memory
def test_training_keeps_no_maps(run15):
    """What the graph keeps for the means: queries and keys, which the attention itself keeps anyway, and no maps."""
    saved = {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    query, key = torch.randn(4, 256, 32, requires_grad=True), torch.randn(4, 77, 32, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        softmax.mean_over_pixels(query, key, 8)
    assert sum(saved.values()) <= (query.numel() + key.numel()) * 4


@pytest.mark.parametrize("pixels", [256, 64], ids=["row by row", "a quarter of a row"])
def test_no_more_than_the_budget_is_computed_at_once(monkeypatch, pixels):
    """A joint sequence at 1024 pixels has 4096 pixels times as many keys: gigabytes for a single row."""
    query, key = torch.randn(4, 256, 32, requires_grad=True), torch.randn(4, 77, 32, requires_grad=True)
    monkeypatch.setattr(softmax, "SCORES_AT_ONCE", 8 * pixels * 77)
    largest = [0]

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for value in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(value, torch.Tensor):
                    largest[0] = max(largest[0], value.untyped_storage().nbytes())
            return result

    with Sizes():
        softmax.mean_over_pixels(query, key, 8).square().sum().backward()
        softmax.chosen_keys(query, key, 8, torch.tensor([[1, 2]] * 4)).square().sum().backward()
    assert largest[0] <= 8 * pixels * 77 * 4
