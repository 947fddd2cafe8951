"""What the model's own `extra_conds` costs, beside a denoiser that is handed the text's encoding directly."""
from __future__ import annotations

import torch
from torch import Tensor

from personalize.nodes.text.encode import encode
from personalize.nodes.text.tokens import PromptTokenizer
from personalize.nodes.training.denoiser import denoise
from personalize.nodes.training.parts.part import RunningPass
from personalize.nodes.training.session import Session

from .measure import median_ratio, seconds_in_turn
from .ours import CAPTIONS, TERMS, training_step


@torch.no_grad()
def extra_conds_ratio(session: Session, latents: Tensor, rounds: int) -> float:
    """Seconds of a forward pass on latents (rows, 4, h, w) by those of a direct call, which gives the same."""
    with training_step(session, latents, TERMS["embedding"], one_prompt=True) as training:
        batch = training.batch()
    noised = batch.latents["subject"]
    tokens = PromptTokenizer(session.clip, {})(CAPTIONS[0].replace("{}", "dog"))
    context = encode(session.clip, [tokens], [{}]).expand(len(latents))
    running = RunningPass(batch, "subject", context.tokens)

    def whole() -> Tensor:
        return denoise(session, noised.noisy, noised.sigma, context, running)

    def direct() -> Tensor:
        return session.model.model.apply_model(noised.noisy, noised.sigma, c_crossattn=context.cond,
                                               transformer_options=session.transformer_options(noised.sigma))

    assert torch.equal(whole(), direct())
    return median_ratio(seconds_in_turn({"whole": whole, "direct": direct}, rounds), "whole", "direct")
