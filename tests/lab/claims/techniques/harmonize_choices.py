"""What the harmonizing paper leaves to its supplement: one choice after the other changed in Self-Attention Swap."""
from __future__ import annotations

from dataclasses import replace

from ..technique import Method, Technique
from .harmonize import Swap
from .harmonize import technique as whole_method

CHOICES = {
    "threshold": (0.3, 0.5), "layers": ("decoder", "fine decoder", "encoder"), "where": ("everywhere",),
    "start": (0.0, 0.4), "mask_layers": ("all layers",), "mask_steps": ("newest step",), "halves": ("conditional",),
    "noise": ("own",), "guidance": ("unguided",), "subject": ("class word",),
}


def technique(quick: bool) -> Technique:
    """The paper's method with every default, and with each of them changed alone."""
    methods = {method.name: method for method in whole_method(quick).methods}
    both, changed = methods["both"], []
    for name, values in CHOICES.items():
        for value in values:
            changed.append(replace(both, name=f"{name}-{str(value).replace(' ', '-')}",
                                   swap=replace(Swap(), **{name: value})))
    shown: tuple[Method, ...] = (methods["baseline"], methods["orchestration"], both, *changed)
    return Technique(shown, {method.name: "both" for method in shown if method is not both})
