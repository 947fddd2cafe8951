"""What the papers measure, with a judge that knows the truth: text alignment, identity, pose bias, paired intervals."""
from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from .factors import POSES, Identity, color_rgb
from .grammar import said
from .oracle import Judgement, Oracle

CLAIM_SUBJECTS = 8
NEAR = 60          # RGB distance up to which shading may move a colour
SHOWN = 0.08       # share of the subject that a colour must cover


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} {self.low:.2f} {self.high:.2f}"


def text_alignment(judged: Judgement, prompt: str) -> float:
    """Share (0..1) of the factors stated by the prompt that the picture shows; raises ValueError if it states none."""
    verdict = judged.agrees(said(prompt))
    if not verdict:
        raise ValueError(f"the prompt {prompt!r} states nothing that can be checked.")
    return sum(verdict.values()) / len(verdict)


def reference_identity(oracle: Oracle, pictures: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """(64,) unit vector of a subject: the mean over its reference pictures (B, 3, 128, 128) under their true masks."""
    with torch.no_grad():
        vectors = oracle.identity(pictures.to(oracle.device), (masks > 0.5).float().to(oracle.device)).cpu()
    return torch.nn.functional.normalize(vectors.mean(0), dim=0)


def identity_similarity(judged: Judgement, reference: torch.Tensor) -> float:
    """Cosine (-1..1) between the subject in the picture and the reference subject."""
    return float(judged.identity @ reference)


def colors_kept(picture: torch.Tensor, judged: Judgement, identity: Identity) -> bool:
    """True when each colour of the identity covers a fair part of the subject; picture (3, 128, 128) in 0..1."""
    pixels = 255 * picture.flatten(1).T[judged.mask.flatten() > 0]
    if not len(pixels):
        return False
    return all(float(((pixels - torch.tensor(color_rgb(c),
                                             dtype=torch.float32)).norm(dim=1) < NEAR).float().mean()) > SHOWN
               for c in identity.colors)


def identity_kept(picture: torch.Tensor, judged: Judgement, identity: Identity) -> bool:
    """True when pattern and colours are the subject's own."""
    return judged.factors["pattern"] == identity.pattern and colors_kept(picture, judged, identity)


def kept_against_prompt(judged: Judgement, prompt: str, factor: str, reference: str | None) -> bool | None:
    """Whether a picture shows the references' value of a factor ("pose", "background") although its prompt asks for
    another one; None if it does not, or if the references share no value."""
    if reference is None or getattr(said(prompt), factor) in (None, reference):
        return None
    return judged.factors[factor] == reference


def pose_bias(judged: Sequence[Judgement], prompts: Sequence[str], reference_pose: str) -> float:
    """Share of pictures in the reference pose among those whose prompt asks for another one; raises ValueError if
    none."""
    kept = [kept_against_prompt(j, prompt, "pose", reference_pose) for j, prompt in zip(judged, prompts, strict=True)]
    asked = [one for one in kept if one is not None]
    if reference_pose not in POSES or not asked:
        raise ValueError(f"no prompt asks for a pose other than {reference_pose!r}.")
    return sum(asked) / len(asked)


def bootstrap(values: Mapping[str, Sequence[float]], draws: int = 4000, seed: int = 0) -> Interval:
    """Mean over subjects of their mean values, with a percentile interval that resamples **subjects**.

    values: subject -> one value a picture. Raises ValueError below eight subjects: too few for a claim.
    """
    if len(values) < CLAIM_SUBJECTS:
        raise ValueError(f"{len(values)} subjects carry no claim; use at least {CLAIM_SUBJECTS}.")
    means = [sum(v) / len(v) for _, v in sorted(values.items())]
    rng = random.Random(seed)
    sampled = sorted(sum(rng.choices(means, k=len(means))) / len(means) for _ in range(draws))
    return Interval(sum(means) / len(means), sampled[int(0.025 * draws)], sampled[int(0.975 * draws) - 1])


def paired_difference(one: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]], **how: int) -> Interval:
    """``one`` minus ``other``, picture by picture (same subject, prompt, seed, noise), as ``bootstrap``."""
    if one.keys() != other.keys() or any(len(one[s]) != len(other[s]) for s in one):
        raise ValueError("the two methods were not measured on the same subjects and pictures.")
    return bootstrap({s: [a - b for a, b in zip(one[s], other[s])] for s in one}, **how)
