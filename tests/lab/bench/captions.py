"""How often the text encoder gets a caption that training does not change."""
from __future__ import annotations

from torch import Tensor

from personalize.nodes.training.parts.weights import AdapterPart
from personalize.nodes.training.session import Session

from .ours import TERMS, open_steps


def encodes_per_prompt(session: Session, latents: Tensor, rows: int, steps: int) -> tuple[int, int]:
    """(prompts encoded, different prompts seen) in a LoRA's training on latents (pictures, 4, h, w), one caption each.

    rows: pictures of a step."""
    captions = [f"photo {number} of a dog" for number in range(len(latents))]
    encoded: list[int] = []
    hook = session.clip.cond_stage_model.clip_l.register_forward_pre_hook(
        lambda _, inputs: encoded.append(len(inputs[0])))
    with open_steps(session, latents, captions, rows, TERMS["embedding"], AdapterPart(rank=1)) as training, hook:
        seen = set()
        for step in range(1, 1 + steps):
            training.trainer.optimise(step)
            seen |= {row.prompt for row in training.trainer.batch(step).rows["subject"]}
    return sum(encoded), len(seen)
