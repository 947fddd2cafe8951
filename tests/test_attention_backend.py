"""The computation of attention that a person has chosen for a MODEL also computes the pack's own attention."""
from __future__ import annotations

import pytest
import torch

from personalize.nodes.families.find import unet_of
from support.patches import PATCHES, patch_on
from support.sampling import difference, sample


@pytest.fixture(params=PATCHES)
def patched(request, sd15, tmp_path):
    torch.manual_seed(0)
    return patch_on(request.param, sd15, tmp_path)


def with_backend(model, backend):
    """A clone of the MODEL whose attentions are computed by `backend(function, q, k, v, heads, …)`."""
    clone = model.clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = backend
    return clone


def test_the_chosen_backend_computes_every_attention(patched, sd15, monkeypatch):
    """Of core's backends none is called but from the chosen one."""
    inside, outside, calls = [], [], []

    def backend(function, q, k, v, heads, **options):
        calls.append(q.shape)
        inside.append(True)
        try:
            return function(q, k, v, heads, **options)
        finally:
            inside.pop()

    real = torch.nn.functional.scaled_dot_product_attention

    def counted(*args, **kwargs):
        if not inside:
            outside.append(args[0].shape)
        return real(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    model = patched.apply(with_backend(sd15.model, backend))
    sample(model, patched.positive, patched.negative, steps=1)
    assert outside == []
    with_patch, calls[:] = len(calls), []
    sample(with_backend(sd15.model, backend), patched.positive, patched.negative, steps=1)
    own = 2 * len(unet_of(sd15.model).layers)
    assert len(calls) == own
    assert with_patch >= own + patched.calls


def test_another_backend_gives_the_same_picture(patched, sd15):
    """One that computes in float64, also with a mask."""
    def exact(_, q, k, v, heads, mask=None, **options):
        q, k, v = (t.double().unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        mask = None if mask is None else mask.double()[:, None]
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1,
                                                                                                   2).flatten(2).float()

    model = patched.apply(sd15.model)
    plain = sample(model, patched.positive, patched.negative)
    assert difference(sample(with_backend(model, exact), patched.positive, patched.negative), plain) < 1e-4
