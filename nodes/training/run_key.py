"""The name of a run: the same for everything that gives the same result, another one for everything else.

Not in it: how far (steps, with a constant learning rate) and how a run is computed (micro_batch, gradient
checkpointing: the same to rounding, and a run may continue with other ones); what is shown and saved on the way; the
versions of ComfyUI, torch and this pack; where files lie; the device. FORMAT is raised when the same inputs begin to
give another result.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ..text.placeholders import EMBEDDING, filled
from .description import clip_fingerprint, model_fingerprint, vae_fingerprint
from .fingerprint import fingerprint
from .plan import Plan
from .session import compute_dtype

FORMAT = 2


def run_key(plan: Plan) -> str:
    """Hexadecimal digest of all that the result of a plan depends on."""
    settings = replace(plan.settings, steps=0) if plan.settings.schedule == "constant" else plan.settings
    prompts = (plan.subjects, plan.terms, plan.recipe)
    return fingerprint(FORMAT, model_fingerprint(plan.model), clip_fingerprint(plan.clip), vae_fingerprint(plan.vae),
                       *prompts, _embedding_files(plan, prompts), plan.parts, settings, plan.precision,
                       compute_dtype(plan.model, plan.precision))


def _embedding_files(plan: Plan, asked: Any) -> dict[str, Any]:
    """Tokens, with the vectors of embedding files as they are now, of every prompt that names such a file."""
    words = [word for subject in plan.subjects for word in (subject.concept.placeholder, subject.concept.class_words)]
    named = {text for text in _texts(asked) if EMBEDDING in text}
    prompts = {filled(text, word) for text in named for word in words}
    return {prompt: plan.clip.tokenize(prompt) for prompt in sorted(prompts)}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _texts(getattr(value, field.name))
    elif isinstance(value, (list, tuple, Mapping)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)
