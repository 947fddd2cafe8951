"""A U-Net whose cross-attentions are each handed a text by a loop of the test's own."""
from __future__ import annotations

import contextlib

import torch

from .sampling import sample


def cross_attentions(model, conditioning) -> list[torch.nn.Module]:
    """In the order in which a step of a sampler calls them. conditioning: any that the model can be sampled with."""
    called, modules = [], [module for name, module in model.model.named_modules() if name.endswith(".attn2")]
    with contextlib.ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_pre_hook(lambda module, inputs: called.append(module)).remove)
        sample(model, conditioning, conditioning, steps=1, cfg=1.0)
    assert sorted(map(id, called)) == sorted(map(id, modules))
    return called


@contextlib.contextmanager
def handed(modules: list[torch.nn.Module], texts: list[torch.Tensor], other: torch.Tensor | None = None):
    """While the context is open each of the cross-attentions gets its (1, T, C) of `texts`; rows whose text is `other`,
    the negative prompt's, keep it."""
    def hand(text):
        def change(module, inputs, kwargs):
            rows = [row if other is not None and torch.equal(row, other[0].to(row)) else text[0].to(row)
                    for row in kwargs["context"]]
            given = torch.stack(rows)
            return inputs, {**kwargs, "context": given, "value": given}
        return change

    with contextlib.ExitStack() as stack:
        for module, text in zip(modules, texts, strict=True):
            stack.callback(module.register_forward_pre_hook(hand(text), with_kwargs=True).remove)
        yield
