"""What a job gives, also one whose work was done earlier."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..text.concept import Concept
from ..text.embedding_files import load_embedding
from ..text.encoders import text_encoders
from ..weight_files import check_numbers, read_state_dict
from .plan import Plan
from .run_folder import RunFolder
from .saved_steps import missing_file, reconciled


@dataclass(frozen=True)
class Outcome:
    """What a job gives: concepts with learned vectors, a LoRA file's tensors, and the run's report."""

    concepts: tuple[Concept, ...]
    weights: dict[str, Tensor] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)


def known_report(plan: Plan, folder: RunFolder) -> dict[str, Any]:
    """The run's report with those saved steps and previews that are there."""
    return reconciled(folder.report(), [s.concept.placeholder for s in plan.subjects], plan.parts)


def saved_outcome(plan: Plan, folder: RunFolder, step: int) -> Outcome:
    """The concepts and weights that an earlier execution saved at `step`. Raises ValueError with one sentence."""
    report = known_report(plan, folder)
    saved = {s["step"]: s for s in report["saved"]}
    if step not in saved:
        raise ValueError(_why_not_saved(folder, step, saved))
    if saved[step].get("left_out"):
        raise ValueError(f"use_step is {step} but the trained weights were saved only at the last step, as files of "
                         f"more than 300 MB are; set use_step to 0, or train anew with steps set to {step}.")
    files = [Path(file) for file in saved[step]["files"]]
    about = {"run": folder.run, "step": str(step), "model": type(plan.model.model).__name__}  # as of a trained one
    encoders = text_encoders(plan.clip)
    concepts = tuple(
        subject.concept.with_vectors(load_embedding(file, encoders)[0], {**subject.concept.settings, **about})
        for subject, file in zip(plan.subjects, files, strict=False))
    weights = _read_trained(files[-1]) if len(files) > len(concepts) else {}
    return Outcome(concepts, weights, report)


def _why_not_saved(folder: RunFolder, step: int, saved: Mapping[int, Any]) -> str:
    said = next((s for s in folder.report()["saved"] if s["step"] == step), None)
    deleted = said and missing_file(said)
    if deleted:
        return (f"use_step is {step} but its file {deleted} has been deleted; choose another step, or 0 for "
                "the last.")
    return (f"use_step is {step} but this run has saved steps {', '.join(map(str, saved)) or 'none'}; choose "
            "one of them, or 0 for the last.")


def _read_trained(path: Path) -> dict[str, Tensor]:
    weights = read_state_dict(path, "file of trained weights")
    check_numbers(path, weights.items())
    return weights
