"""Why a training failed, named where it arises, with the remedies that the node at hand still has."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..text.placeholders import Placeholders
from .batch import Batch
from .parts.part import TrainablePart
from .parts.text_encoder import TextEncoderPart
from .parts.weights import UNetPart

if TYPE_CHECKING:
    from .loop import Trainer
    from .plan import Settings

HALF = (torch.float16, torch.bfloat16)


class TrainingDiverged(ValueError):
    """A loss or gradient is no longer a finite number; the parameters are still those of the last finite step."""


class OutOfMemory(ValueError):
    """Something does not fit into memory; a step not even with half the rows at once."""


@dataclass(frozen=True)
class NodeInputs:
    """What a person can set at the node that trains.

    fewer_rows: whether micro_batch and gradient_checkpointing are there. precision: whether that is.
    smaller: how less is looked at in a step.
    """

    fewer_rows: bool
    precision: bool
    smaller: str


OF_TRAIN = NodeInputs(True, True, "set size of Subject lower")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or in main memory."""
    text = str(error).lower()
    return (isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError))
            or isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text))


@contextlib.contextmanager
def fitting(what: str, remedy: str) -> Iterator[None]:
    """If memory runs out while the context is open, OutOfMemory says what does not fit and what to do.

    what: with its verb, "The models do". remedy: "use smaller ones".
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"{what} not fit into memory; {remedy}.") from error


def lighter(parts: Sequence[TrainablePart]) -> str:
    """What to do where the models and the parts to train do not fit."""
    if any(type(part) is UNetPart for part in parts):
        return "connect Train Adapter in place of Train U-Net"
    if any(isinstance(part, TextEncoderPart) and not part.rank for part in parts):
        return "set form of Train Text Encoder to LoRA"
    if len(parts) > 1:
        return "take parts out of the chain at trainable"
    return "close what else uses the memory, or use a checkpoint in fp16 in place of fp32"


def step_too_large(step: int, rows: int, settings: Settings, inputs: NodeInputs) -> OutOfMemory:
    """A step does not fit with this number of rows at once."""
    remedies = []
    if inputs.fewer_rows and rows > 1:
        remedies.append("set micro_batch to 1")
    if inputs.fewer_rows and not settings.checkpointing:
        remedies.append("set gradient_checkpointing to on")
    remedies.append(inputs.smaller)
    return OutOfMemory(f"Step {step} does not fit into memory with {rows} row{'s' * (rows > 1)} at once; "
                       f"{', or '.join(remedies)}.")


def not_a_number(trainer: Trainer, batch: Batch, values: dict[str, float]) -> TrainingDiverged:
    """Why a step's loss or gradient is no number: the text encoder, the model, a loss, or what was learned.

    values: term → its loss.
    """
    name = type(trainer.session.model.model).__name__
    dtype = trainer.session.model.model.get_dtype_inference()
    wide = ", or set precision to fp32" if dtype in HALF and trainer.inputs.precision else ""
    odd = [term for term, value in values.items() if not torch.tensor(value).isfinite()]
    what = f"the loss {' and '.join(odd)}" if odd else "the gradient"
    prompt, predicted = _without_learning(trainer, batch)
    if prompt:
        why = (f"the text encoder gives values that are not numbers for '{prompt}', also without what is learned; load "
               "its file again, or take out the LoRA or embedding that it comes with")
    elif not predicted:
        why = (f"the model {name} gives values that are not numbers by itself, without what is learned, in "
               f"{_short(dtype)}; load another file of it{wide}, or take out LoRAs and other patches")
    elif not trainer.step or not any(group["lr"] for group in trainer.optimizer.param_groups):
        why = f"{what} is not a number although nothing is learned yet; lower its weight{wide}"
    else:
        why = f"{what} is not a number any more; lower the learning rate{wide}"
    return TrainingDiverged(f"Step {batch.step}: {why}.")


def _without_learning(trainer: Trainer, batch: Batch) -> tuple[str, bool]:
    """The first prompt whose encoding is no number, with class words in the place of learned ones; and whether the
    model's predictions are numbers."""
    class_words = {subject.concept.placeholder: subject.concept.class_words for subject in batch.subjects}
    for row in batch.micro_batches(1):
        prompt = Placeholders(class_words).replace(row.rows["subject"][0].prompt, class_words.__getitem__)
        encoded, predicted = trainer.objective.original(row, prompt)
        if not _finite(encoded):
            return prompt, True
        if not _finite(predicted):
            return "", False
    return "", True


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def _short(dtype: torch.dtype) -> str:
    return {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}.get(dtype, str(dtype))
