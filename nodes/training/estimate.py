"""Memory and minutes of a training before it runs, from counted figures, and settings that fit where it does not."""
from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import folder_paths

from ..api_prompt import is_link
from ..files import version_of
from .counted import FLOAT32, Counted, counted
from .foreseen import Foreseen, Graph, NotForeseen
from .optimizer import kept_tensors
from .plan import Settings
from .speed import speed_of

LOADERS = {"CheckpointLoaderSimple": ("checkpoints", "ckpt_name"),
           "UNETLoader": ("diffusion_models", "unet_name")}
BESIDE = {"cpu": 0.3e9}  # bytes that torch and the device's own libraries take
BESIDE_ON_GPU = 1e9
PREVIEW_STEPS, PREVIEW_ROWS = 25, 2
LOOKING = 1.13  # times the memory where losses look at attention: measured, 1.04 to 1.13
LONGEST_WAY = 100  # nodes between a loader and Train


@dataclass(frozen=True)
class Estimate:
    """memory, available: bytes. seconds: of all steps and previews."""

    memory: int
    available: int
    seconds: float

    @property
    def fits(self) -> bool:
        """Whether there is room for it."""
        return self.memory <= self.available


def estimated(graph: Graph, node: str) -> tuple[Estimate, dict[str, Any]]:
    """What the Train node of that id will need, and other values of its widgets with which it fits, empty if it does.

    Raises NotForeseen where only a run can tell, ValueError where the file cannot be counted.
    """
    foreseen, path = graph.training(node), model_file(graph, node)
    first = _estimate(foreseen, path)
    if first.fits:
        return first, {}
    for change in _lighter(foreseen):
        found = _estimate(_changed(foreseen, change), path)
        if found.fits:
            return first, {**change, "memory": found.memory, "seconds": found.seconds}
    return first, {}


def flops_of(foreseen: Foreseen, each: Counted) -> float:
    """Of one step, with what gradient checkpointing computes again."""
    how = foreseen.training.settings
    with_gradient, without = _passes(foreseen)
    again = each.forward if how.checkpointing else 0
    texts = 2 * texts_of_layers(foreseen, each, how.batch_size) * each.text_forward
    return with_gradient * (each.forward + each.backward + again) + without * each.forward + texts


def texts_of_layers(foreseen: Foreseen, each: Counted, rows: int) -> int:
    """Prompts that so many pictures are encoded for beside one each: where words have vectors for each layer, again for
    each further layer, and so is the other prompt of a loss that looks at its attention."""
    training = foreseen.training
    if not any(part.label == "per-layer" for part in training.parts):
        return 0
    looked_at = any(_looks_at_maps(term) for term in training.terms)
    return (each.layers - 1) * (rows + looked_at * min(rows, len(training.subjects)))


def counts(foreseen: Foreseen, path: Path) -> Counted:
    """One row of the model in that file, as it would be trained."""
    whole = any(part.label == "unet" for part in foreseen.training.parts)
    return counted(path, version_of(path), foreseen.size, foreseen.precision, whole)


def model_file(graph: Graph, node: str) -> Path:
    """The file that MODEL comes from, past nodes that change it. Raises NotForeseen if no loader of ComfyUI's gives
    it."""
    link = graph.prompt.get(node, {}).get("inputs", {}).get("model")
    for _ in range(LONGEST_WAY):
        if not is_link(link):
            break
        node, inputs = str(link[0]), graph.prompt.get(str(link[0]), {}).get("inputs", {})
        if graph.kind(node) in LOADERS:
            folder, name = LOADERS[graph.kind(node)]
            found = folder_paths.get_full_path(folder, str(inputs.get(name, "")))
            if found is None:
                raise NotForeseen
            return Path(found)
        link = inputs.get("model")
    raise NotForeseen


def _estimate(foreseen: Foreseen, path: Path) -> Estimate:
    each, how = counts(foreseen, path), foreseen.training.settings
    every = foreseen.training.preview_every
    previews = (how.steps // every + 1) * PREVIEW_STEPS * PREVIEW_ROWS * each.forward if every else 0
    seconds = (how.steps * flops_of(foreseen, each) + previews) / speed_of(each.dtype)
    return Estimate(_memory(foreseen, each), _available(), seconds)


def _memory(foreseen: Foreseen, each: Counted) -> int:
    how, parts = foreseen.training.settings, foreseen.training.parts
    rows = min(how.micro_batch or how.batch_size, how.batch_size)
    kept = each.recomputed if how.checkpointing else each.kept
    beside = sum(getattr(part, "rows_beside", 0) for part in parts)  # ViCo's references
    kept *= LOOKING if any(_looks_at_maps(term) for term in foreseen.training.terms) else 1
    trained = {part.label for part in parts}
    numbers = each.numbers * ("unet" in trained) + each.of_text * ("text-encoder" in trained)
    changes = (2 + kept_tensors(how.optimizer)) * FLOAT32 * numbers
    texts = texts_of_layers(foreseen, each, rows) * each.text_kept
    return round(each.weights + rows * kept * (1 + beside) + texts + changes + _beside())


def _passes(foreseen: Foreseen) -> tuple[float, float]:
    """Rows that go through the denoiser in a step, with a gradient and without."""
    how, training = foreseen.training.settings, foreseen.training
    grad, plain = [sum(getattr(term, "passes", (0, 0))[i] for term in training.terms) for i in (0, 1)]
    beside = sum(getattr(part, "rows_beside", 0) for part in training.parts)
    prior = sum(subject.prior.rows for subject in training.subjects if subject.prior)
    return how.batch_size * (1 + grad + beside) + prior, how.batch_size * plain


def _looks_at_maps(term: Any) -> bool:
    return getattr(term, "passes", (0, 0)) != (0, 0) or getattr(term, "estimate", False)


def _lighter(foreseen: Foreseen) -> Iterator[dict[str, Any]]:
    """Values of Train's widgets that need less, the mildest first."""
    how = foreseen.training.settings
    rows = how.micro_batch or how.batch_size
    halves = [rows >> i for i in range(1, int(math.log2(rows)) + 1)]
    smaller = [{"micro_batch": each} for each in halves]
    yield from smaller
    least = smaller[-1] if smaller else {}
    if not how.checkpointing:
        yield from ({**each, "gradient_checkpointing": True} for each in (*smaller[:1], least))
    if foreseen.precision != "bf16" and mm.should_use_bf16(mm.get_torch_device()):
        yield {**least, "gradient_checkpointing": True, "precision": "bf16"}


def _changed(foreseen: Foreseen, change: Mapping[str, Any]) -> Foreseen:
    settings: Settings = foreseen.training.settings
    settings = replace(settings, micro_batch=change.get("micro_batch", settings.micro_batch),
                       checkpointing=change.get("gradient_checkpointing", settings.checkpointing))
    training = replace(foreseen.training, settings=settings)
    return replace(foreseen, training=training, precision=change.get("precision", foreseen.precision))


def _available() -> int:
    """Bytes of the device that a training may take: what is loaded there makes room for it."""
    device = mm.get_torch_device()
    loaded: Sequence[Any] = mm.current_loaded_models
    held = sum(each.model_loaded_memory() for each in loaded if each.device == device)
    return int(mm.get_free_memory(device) + held)


def _beside() -> float:
    return BESIDE.get(mm.get_torch_device().type, BESIDE_ON_GPU)
