"""An adapter applied beside the frozen weight is the function that its file describes, at the price of its rank."""
from __future__ import annotations

import comfy.model_management as mm
import comfy.ops
import comfy.sd
import pytest
import torch
from comfy.weight_adapter import adapter_maps
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import personalize  # noqa: F401
from personalize.nodes.training.parts.beside import Beside, stands_beside
from personalize.nodes.training.parts.part import TrainingRun
from personalize.nodes.training.parts.weights import AdapterPart
from personalize.nodes.training.session import training_session, unload

ops = comfy.ops.manual_cast
NAME = "diffusion_model.output_blocks.3.1.transformer_blocks.0.attn2.to_v"
LAYERS = {
    "linear": (lambda: ops.Linear(12, 10), (2, 7, 12)),
    "linear without bias": (lambda: ops.Linear(12, 10, bias=False), (7, 12)),
    "convolution": (lambda: ops.Conv2d(6, 10, 3, stride=2, padding=1), (2, 6, 9, 8)),
    "one point": (lambda: ops.Conv2d(6, 10, 1), (2, 6, 5, 5)),
    "dilated in three dimensions": (lambda: ops.Conv3d(4, 6, 3, padding=2, dilation=2), (1, 4, 5, 5, 5)),
    "one dimension": (lambda: ops.Conv1d(6, 10, 5, padding=2), (2, 6, 11)),
}


def made(kind: str, algorithm: str = "LoRA", dtype: torch.dtype = torch.float64):
    """A frozen layer, an adapter of it with random weights, and an input of the layer."""
    build, shape = LAYERS[kind]
    draw = torch.Generator().manual_seed(7)
    layer = build().to(dtype).requires_grad_(False)
    for weight in layer.parameters():
        weight.copy_(0.3 * torch.randn(weight.shape, generator=draw))
    adapter = adapter_maps[algorithm].create_train(layer.weight, rank=2, alpha=1.0)
    if algorithm != "OFT":  # which computes in float32 whatever it is given
        adapter.double()
    for p in trained(adapter):
        p.data.copy_(torch.randn(p.shape, generator=draw))
    return layer, adapter, torch.randn(shape, generator=draw).to(dtype).requires_grad_()


def trained(adapter) -> list[nn.Parameter]:
    return [p for p in adapter.parameters() if p.ndim]


def gradients(output, adapter, x):
    draw = torch.Generator().manual_seed(8)
    weight = torch.randn(output.shape, generator=draw).to(output)
    return torch.autograd.grad((output * weight).sum(), [x, *trained(adapter)])


@pytest.mark.parametrize("algorithm", ["LoRA", "LoKr", "OFT"])
@pytest.mark.parametrize("kind", LAYERS)
def test_it_is_the_layer_with_the_changed_weight(kind, algorithm):
    layer, adapter, x = made(kind, algorithm)
    close = {"rtol": 1e-5, "atol": 1e-5} if algorithm == "OFT" else {"rtol": 1e-11, "atol": 1e-11}
    layer.bias_function = [lambda bias: bias + 1]
    layer.weight_function = [adapter]
    expected = layer(x)
    wanted = gradients(expected, adapter, x)
    layer.weight_function = []
    assert not torch.allclose(layer(x), expected, rtol=0.1)
    with layer.register_forward_hook(Beside(adapter, lambda: True)):
        found = layer(x)
    torch.testing.assert_close(found, expected, **close)
    torch.testing.assert_close(gradients(found, adapter, x), wanted, **close)


def test_in_half_precision_it_computes_as_its_layer_does():
    layer, adapter, x = made("linear", dtype=torch.bfloat16)
    with layer.register_forward_hook(Beside(adapter, lambda: True)):
        found = layer(x)
    exact = nn.functional.linear(x.double(), adapter(layer.weight.double()), layer.bias.double())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=2**-7 * exact.abs().max().item())
    assert all(gradient.isfinite().all() for gradient in gradients(found, adapter, x))


def test_no_product_of_the_weights_size_is_made():
    """Two for the layer there and back, and three for each small factor, as if they were layers of their own."""
    layer, adapter, x = made("linear")
    with layer.register_forward_hook(Beside(adapter, lambda: True)), FlopCounterMode(display=False) as counter:
        layer(x).sum().backward()
    rows, rank, given, gives = 14, 2, 12, 10
    assert counter.get_total_flops() == 2 * rows * (2 * given * gives + 3 * rank * (given + gives))


def test_layers_that_it_cannot_stand_beside_get_a_new_weight(sd15):
    model, adapter = sd15[0], made("linear")[1]
    assert stands_beside(model, ops.Linear(12, 10), adapter)
    assert not stands_beside(model, ops.Conv2d(6, 10, 3, groups=2), adapter)
    assert not stands_beside(model, ops.Embedding(12, 10), adapter)
    assert not stands_beside(model, ops.Linear(12, 10), made("linear", "LoHa")[1])


def lora(model, seed: int) -> dict[str, torch.Tensor]:
    """A LoRA file's tensors for one layer."""
    draw = torch.Generator().manual_seed(seed)
    gives, given = model.get_model_object(NAME).weight.shape
    return {f"{NAME}.lora_up.weight": 0.1 * torch.randn(gives, 2, generator=draw),
            f"{NAME}.lora_down.weight": 0.1 * torch.randn(2, given, generator=draw), f"{NAME}.alpha": torch.tensor(2.0)}


def changed(model, how: str):
    """A MODEL that other nodes have changed where the adapter will stand."""
    if how == "LoRA":
        return comfy.sd.load_lora_for_models(model, None, lora(model, 1), 1.0, 0.0)[0]
    if how == "LoRA in bypass mode":
        return comfy.sd.load_bypass_lora_for_models(model, None, lora(model, 1), 1.0, 0.0)[0]
    model = model.clone()
    model.add_weight_wrapper(f"{NAME}.weight", lambda weight: weight + 0.02)
    return model


def predicted(model, options):
    draw = torch.Generator().manual_seed(3)
    width = model.get_model_object(NAME).weight.shape[1]
    noisy, context = torch.randn(1, 4, 8, 8, generator=draw), torch.randn(1, 77, width, generator=draw)
    with torch.no_grad():
        return model.model.apply_model(noisy, torch.tensor([2.0]), c_crossattn=context, transformer_options=options)


@pytest.mark.parametrize("how, part", [
    ("LoRA", AdapterPart("LoRA", attention_only=False)), ("LoRA in bypass mode", AdapterPart("OFT", alpha=0.0)),
    ("weight function", AdapterPart("LoKr", attention_only=False))], ids=["LoRA", "OFT", "LoKr"])
def test_on_a_changed_model_it_is_what_its_file_says(exact, how, part):
    """In the session, after a reload as a preview causes it, and from the file by the stock loader on the same
    MODEL."""
    model, clip, _ = exact("sd15")
    model = changed(model, how)
    draw = torch.Generator().manual_seed(4)
    with torch.inference_mode(), training_session(model, clip) as session:
        attached = part.attach(TrainingRun(session.model, session.clip, (), session.device, 0))
        session.load()
        options = session.transformer_options(torch.tensor([2.0]))
        with torch.no_grad():
            for p in attached.groups[0].params:
                p.copy_(0.1 * torch.randn(p.shape, generator=draw))
        trained = predicted(session.model, options)
        with attached.bypassed():
            original = predicted(session.model, options)
        unload(session.model)
        session.load()
        again = predicted(session.model, options)
        file = attached.weights()
    assert not any(module._forward_hooks for module in model.model.modules())
    assert torch.equal(again, trained)
    loaded = comfy.sd.load_lora_for_models(model, None, file, 1.0, 0.0)[0]
    for patcher, expected in ((model, original), (loaded, trained)):
        mm.load_models_gpu([patcher], force_full_load=True)
        torch.testing.assert_close(predicted(patcher, {"cond_or_uncond": [0]}), expected, rtol=1e-5, atol=1e-5)
    assert (trained - original).abs().max() > 0.01
    mm.unload_all_models()
