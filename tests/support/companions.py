"""What people put beside a patch on a MODEL: a LoRA, a ControlNet, attention patches of other packs."""
from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch

KINDS = ("plain", "LoRA", "ControlNet", "patch before", "patch after")


def composed(kind: str, model, positive, patch: Callable):
    """(patch(model) with a companion of this kind, the positive conditioning with its part of it)."""
    if kind == "LoRA":
        return patch(with_lora(model)), positive
    if kind == "ControlNet":
        return patch(model), with_control(model, positive)
    if kind == "patch before":
        return patch(with_attention_patches(model)), positive
    if kind == "patch after":
        return with_attention_patches(patch(model)), positive
    return patch(model), positive


def with_lora(model, strength: float = 0.7):
    """The model with a rank-2 LoRA on every projection of its text attention."""
    import comfy.sd

    generator = torch.Generator().manual_seed(11)
    lora = {}
    for name, weight in model.model.state_dict().items():
        if ".attn2." in name and name.endswith(("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight")):
            stem = name.removesuffix(".weight")
            lora[f"{stem}.lora_up.weight"] = 0.3 * torch.randn(weight.shape[0], 2, generator=generator)
            lora[f"{stem}.lora_down.weight"] = 0.3 * torch.randn(2, weight.shape[1], generator=generator)
    patched = comfy.sd.load_lora_for_models(model, None, lora, strength, 0.0)[0]
    assert len(patched.patches) == len(lora) // 2
    return patched


def with_control(model, positive):
    """The conditioning with a random ControlNet of the U-Net's own topology."""
    import comfy.controlnet
    import comfy.ops
    from comfy.cldm.cldm import ControlNet

    config = {key: value for key, value in model.model.model_config.unet_config.items()
              if key not in ("out_channels", "transformer_depth_output", "disable_unet_model_creation")}
    network = ControlNet(**config, hint_channels=3, operations=comfy.ops.manual_cast).eval()
    generator = torch.Generator().manual_seed(12)
    for weight in network.state_dict().values():
        if weight.is_floating_point():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.5 / max(1, weight[0].numel()) ** 0.5)
    hint = torch.rand(1, 3, 128, 128, generator=generator)
    control = comfy.controlnet.ControlNet(network, load_device=model.load_device).set_cond_hint(hint, 0.8, (0.0, 1.0))
    return [[tensor, {**options, "control": control, "control_apply_to_uncond": True}] for tensor, options in positive]


def with_attention_patches(model):
    """The model with patches of another pack at every place of its text attention, and one replaced attention."""
    from comfy.ldm.modules.attention import optimized_attention

    def before(n, context, value, options):
        return n, context * 0.9, value * 1.1

    def replaced(query, key, value, options):
        return optimized_attention(query, key, value.flip(-1), options["n_heads"])

    patched = model.clone()
    patched.set_model_attn2_patch(before)
    patched.set_model_attn2_output_patch(lambda n, options: n * 1.05)
    patched.set_model_attn2_replace(replaced, "middle", 0)
    return patched


@contextlib.contextmanager
def own_tokenizers(clip):
    """The CLIP while another pack encodes prompts with it: attributes on its tokenizers split every text by commas
    alone and know no embeddings; they are deleted afterwards."""
    taken = [each for each in vars(clip.tokenizer).values() if hasattr(each, "tokenize_with_weights")]

    def of(tokenizer):
        def tokenize_with_weights(text, *args, **kwargs):
            ids = [token for part in text.split(",") for token in tokenizer.tokenizer(part)["input_ids"][1:-1]][:75]
            ids = [tokenizer.start_token, *ids, tokenizer.end_token]
            return [[(token, 1.0) for token in ids + [tokenizer.pad_token] * (77 - len(ids))]]

        return tokenize_with_weights

    for each in taken:
        each.tokenize_with_weights = of(each)
    try:
        yield clip
    finally:
        for each in taken:
            del each.tokenize_with_weights


def with_pairs(model, clip):
    """(MODEL, CLIP) of a pack that knows negative weights: every token stands twice in a conditioning, for its key and,
    times −1 where its weight is negative, for its value; the model takes the two apart again."""
    clip, model = clip.clone(), model.clone()
    for name in [name for name in ("clip_l", "clip_g", "clip_h") if hasattr(clip.cond_stage_model, name)]:
        encoder = getattr(clip.cond_stage_model, name)

        def encode(chunks, stock=encoder.encode_token_weights):
            cond, *more = stock([[(token, abs(weight)) for token, weight in chunk] for chunk in chunks])
            signs = torch.tensor([-1.0 if weight < 0 else 1.0 for chunk in chunks for _, weight in chunk])
            return torch.stack([cond, cond * signs.to(cond)[:, None]], 2).flatten(1, 2), *more

        clip.patcher.add_object_patch(f"{name}.encode_token_weights", encode)
    model.set_model_attn2_patch(lambda n, context, value, options: (n, context[:, 0::2], value[:, 1::2]))
    return model, clip
