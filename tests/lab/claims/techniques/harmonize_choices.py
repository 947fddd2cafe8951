"""What the harmonizing paper leaves to its supplement: one choice after the other changed in Self-Attention Swap."""
from __future__ import annotations

from dataclasses import replace

from ..technique import Method, Technique
from .harmonize import Swap
from .harmonize import technique as whole_method

CHOICES = {
    "threshold-0.3": Swap(mask_method="threshold", threshold=0.3),
    "threshold-0.5": Swap(mask_method="threshold", threshold=0.5),
    "layers-decoder": Swap(swap_layers="decoder"),
    "layers-fine-decoder": Swap(swap_layers="fine decoder"),
    "layers-encoder": Swap(swap_layers="encoder"),
    "where-everywhere": Swap(where="everywhere"),
    "start-0.0": Swap(start_percent=0.0),
    "start-0.4": Swap(start_percent=0.4),
    "mask_layers-all-layers": Swap(mask_layers="all layers"),
    "mask_steps-newest-step": Swap(mask_steps="newest step"),
    "halves-conditional": Swap(halves="conditional"),
    "noise-own": Swap(noise="own"),
    "guidance-unguided": Swap(guidance="unguided"),
    "words-class-word": Swap(words="class word"),
}


def technique(quick: bool) -> Technique:
    """The paper's method with every default, and with each of them changed alone."""
    methods = {method.name: method for method in whole_method(quick).methods}
    both = methods["both"]
    changed = [replace(both, name=name, swap=swap) for name, swap in CHOICES.items()]
    shown: tuple[Method, ...] = (methods["baseline"], methods["orchestration"], both, *changed)
    return Technique(shown, {method.name: "both" for method in shown if method is not both})
