"""What a trained denoiser must show before it is used: that it obeys prompts, and that it reads their words."""
from __future__ import annotations

from collections.abc import Mapping

AT_LEAST = {
    "kind": 0.95, "background": 0.95, "pattern": 0.8, "second_kind": 0.85, "one_to_three": 0.92, "four_to_six": 0.85,
    "words_alone": 0.85,  # of the text that whole prompts show
    "followed_background": 0.8, "followed_kind": 0.8, "followed_pose": 0.8, "followed_accessory": 0.8,
    "followed_second_kind": 0.8, "followed_colors": 0.8,
}
AT_MOST = {"context_kept": 0.9}  # cosine of the words after a random vector: what can be disturbed can be protected


def missed(figures: Mapping[str, float]) -> list[str]:
    """Gates that the figures do not pass, as "pattern 0.37, not 0.80"."""
    low = [f"{name} {figures[name]:.2f}, not {gate:.2f}" for name, gate in AT_LEAST.items() if figures[name] < gate]
    high = [f"{name} {figures[name]:.2f}, not {gate:.2f}" for name, gate in AT_MOST.items() if figures[name] > gate]
    return low + high
