"""What the papers measure, with a judge that knows the truth: text alignment, identity, pose bias."""
from __future__ import annotations

from collections.abc import Sequence

import torch

from .factors import POSES, Identity, color_rgb
from .grammar import said
from .oracle import Judgement, Oracle

NEAR = 60          # RGB distance up to which shading may move a colour
SHOWN = 0.08       # share of the subject that a colour must cover


def text_alignment(judged: Judgement, prompt: str, kind: str) -> float:
    """Share (0..1) of what the prompt states, and of the class that its subject is of, that the picture shows."""
    verdict = {**judged.agrees(said(prompt)), "kind": judged.factors["kind"] == kind}
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


def kept_unasked(judged: Judgement, prompt: str, factor: str, reference: str) -> bool | None:
    """Whether a picture shows a value of a factor ("pose", "background") of which its prompt says nothing; None where
    it says something."""
    return None if getattr(said(prompt), factor) is not None else judged.factors[factor] == reference


def whole_similarity(oracle: Oracle, picture: torch.Tensor, reference: torch.Tensor) -> float:
    """Cosine (-1..1) between a whole picture (3, 128, 128) and a reference vector of whole pictures."""
    with torch.no_grad():
        seen = oracle.identity(picture[None].to(oracle.device), torch.ones(1, 1, *picture.shape[1:]))
    return float(seen[0].cpu() @ reference)


def pose_bias(judged: Sequence[Judgement], prompts: Sequence[str], reference_pose: str) -> float:
    """Share of pictures in the reference pose among those whose prompt asks for another one; raises ValueError if
    none."""
    kept = [kept_against_prompt(j, prompt, "pose", reference_pose) for j, prompt in zip(judged, prompts, strict=True)]
    asked = [one for one in kept if one is not None]
    if reference_pose not in POSES or not asked:
        raise ValueError(f"no prompt asks for a pose other than {reference_pose!r}.")
    return sum(asked) / len(asked)
