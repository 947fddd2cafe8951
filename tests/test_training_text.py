"""Text encoders in a training session: wide weights inside, the stored ones after it, many prompts in one call."""
from __future__ import annotations

import pytest
import torch

import personalize  # noqa: F401
from personalize.nodes.text.encode import encode, encode_together
from personalize.nodes.text.tokens import PromptTokenizer
from personalize.nodes.training.session import training_session

PROMPTS = ("a photo of a <x>", "one <x> at night", "no subject at all", "a <x> " + "good " * 90)


def half_precision(clip) -> dict[str, torch.dtype]:
    return {name: weight.dtype for name, weight in clip.cond_stage_model.named_parameters()
            if weight.dtype in (torch.float16, torch.bfloat16)}


def test_weights_are_wide_in_a_session_and_as_stored_after_it(any_checkpoint):
    model, clip, _ = any_checkpoint
    stored, values = half_precision(clip), {n: w.clone() for n, w in clip.cond_stage_model.named_parameters()}
    assert len(stored) > 20
    with pytest.raises(KeyError), torch.inference_mode(), training_session(model, clip) as session:
        session.load()
        session.load()
        left = half_precision(session.clip)
        assert left and all("embedding" in name for name in left)
        raise KeyError("whatever goes wrong")
    assert half_precision(clip) == stored
    assert all(torch.equal(w, values[name]) for name, w in clip.cond_stage_model.named_parameters())


def test_encoding_in_a_session_equals_encoding_outside_and_loads_nothing(sd15, monkeypatch):
    import comfy.model_management

    tokens = PromptTokenizer(sd15.clip, {})("a red cat")
    outside = encode(sd15.clip, [tokens], [{}])
    with torch.inference_mode(), training_session(sd15.model, sd15.clip) as session:
        session.load()
        loads = []
        monkeypatch.setattr(comfy.model_management, "load_models_gpu", lambda *models, **options: loads.append(models))
        inside = encode(session.clip, [tokens], [{}])
    assert torch.equal(inside.cond, outside.cond) and torch.equal(inside.pooled, outside.pooled) and not loads


def test_requests_encoded_together_equal_each_prompt_alone(any_checkpoint):
    clip = any_checkpoint.clip
    tokenizer = PromptTokenizer(clip, {"<x>": 1})
    widths = {encoder.key: encoder.width for encoder in tokenizer.encoders}
    draw = torch.Generator().manual_seed(3)
    one, other = ({"<x>": {key: 0.02 * torch.randn(1, d, generator=draw) for key, d in widths.items()}}
                  for _ in range(2))
    short, night, without, long = (tokenizer(prompt) for prompt in PROMPTS)
    requests = [((short, night, short), (one, one, other)), ((long, short), (one, one)), ((without,), ({},))]
    for (prompts, vectors), together in zip(requests, encode_together(clip, requests), strict=True):
        assert together.tokens == prompts
        for i, (prompt, row_vectors) in enumerate(zip(prompts, vectors, strict=True)):
            alone = encode(clip, [prompt], [row_vectors])
            expected = alone.cond.repeat(1, together.cond.shape[1] // alone.cond.shape[1], 1)
            torch.testing.assert_close(together.cond[i:i + 1], expected, atol=1e-5, rtol=1e-5)
            if alone.pooled is not None:
                torch.testing.assert_close(together.pooled[i:i + 1], alone.pooled, atol=1e-5, rtol=1e-5)
            assert (together.pooled is None) == (alone.pooled is None)
    assert encode_together(clip, []) == []


def test_a_prompt_is_split_once(sd15):
    tokenizer = PromptTokenizer(sd15.clip, {"<x>": 2})
    assert tokenizer("a <x> runs") is tokenizer("a <x> runs")
    assert tokenizer.fill("a {} runs", "<x>") == tokenizer.fill("a {} runs", "<x>")
    assert tokenizer.fill("a {} runs", "<x>") != tokenizer.fill("a {} runs", "dog")
