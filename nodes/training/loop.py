"""The training loop: the only one. Everything a technique adds comes in as loss terms, parts and recipes."""
from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass, field
from typing import Callable, Mapping, Sequence

import torch

import comfy.model_management as mm

from ..text.encode import check_lengths
from ..text.tokens import PromptTokenizer
from .batch import Batch, Latents, Recipe, Subject
from .failures import OF_TRAIN, NodeInputs, fitting, is_out_of_memory, not_a_number, step_too_large
from .interfaces import ChecksSubjects, LossTerm, TextSide
from .optimizer import build_optimizer, optimizer_tensors, restore_optimizer, schedule_factor
from .parts.part import AttachedPart, Vectors
from .passes import GradientNorms, Objective
from .session import Session

MEASURE_GRADIENTS_EVERY = 10
PROMPTS_AHEAD = 100  # steps whose prompts are looked at before the first


@dataclass(frozen=True)
class Settings:
    """What the loop itself needs to know.

    steps: optimiser steps in all. batch_size: rows B of a step. micro_batch: rows computed at once; 0 for all that
    fit. optimizer, weight_decay: of torch.optim. schedule, warmup_steps: of the learning rate. clip_gradients: largest
    Euclidean norm of all gradients together, 0 for none. seed: of every draw. checkpointing: recompute U-Net blocks.
    """

    steps: int
    batch_size: int = 1
    micro_batch: int = 0
    optimizer: str = "AdamW"
    weight_decay: float = 0.01
    schedule: str = "constant"
    warmup_steps: int = 0
    clip_gradients: float = 0.0
    seed: int = 0
    checkpointing: bool = False
    NOT_IN_KEY = ("micro_batch", "checkpointing")  # how it is computed, not what


@dataclass
class Trainer:
    """One run: its parts, its objective, its optimiser, and where it stands.

    inputs: of the node that trains, for messages. step: optimiser steps done. history: one record per step,
    {step, total, loss, parts, norms, lr}.
    """

    session: Session
    subjects: tuple[Subject, ...]
    latents: Latents
    parts: Sequence[AttachedPart]
    terms: Sequence[LossTerm]
    recipe: Recipe
    settings: Settings
    frozen: Vectors
    inputs: NodeInputs = OF_TRAIN
    step: int = 0
    history: list[dict] = field(default_factory=list)

    def __post_init__(self) -> None:
        counts = {name: len(next(iter(rows.values()))) for name, rows in self.frozen.items()}
        for part in self.parts:
            counts.update(part.placeholders)
        tokenizer = PromptTokenizer(self.session.clip, counts)
        self.objective = Objective(self.session, self.parts, self.terms, TextSide(tokenizer, self.session.family.layers),
                                   self.frozen, self.settings.seed, self.settings.checkpointing)
        groups = [group for part in self.parts for group in part.groups]
        self.optimizer = build_optimizer(self.settings.optimizer, groups, self.settings.weight_decay)
        self.rows_at_once = self.settings.micro_batch or self.settings.batch_size

    def run(self, each_step: Callable[[Trainer, dict], bool]) -> None:
        """Trains up to the last step; after each one `each_step(self, record)` says whether to go on.

        Raises TrainingDiverged, OutOfMemory, or ComfyUI's interruption; the parameters then are those after `step`.
        """
        with contextlib.ExitStack() as stack:
            for part in self.parts:
                stack.enter_context(part.installed())
            started, first = time.monotonic(), self.step
            while self.step < self.settings.steps:
                mm.throw_exception_if_processing_interrupted()
                record = self._optimise(self.step + 1)
                record["seconds_left"] = ((time.monotonic() - started) / (self.step - first)
                                          * (self.settings.steps - self.step))
                self.history.append(record)
                if not each_step(self, record):
                    break

    def rehearse(self) -> None:
        """Looks before the first step for what a later one would fail at: prompts and templates that do not go together,
        and losses that begin later, whose first gradients are computed and forgotten. Raises ValueError."""
        ahead = range(self.step + 1, self.settings.steps + 1)
        for step in ahead[:PROMPTS_AHEAD]:
            rows = self.recipe.rows(self.subjects, step, self.settings.batch_size, self.settings.seed)["subject"]
            for start in range(0, len(rows), self.rows_at_once):
                check_lengths({self.objective.text.tokenizer(row.prompt).layout.length
                               for row in rows[start:start + self.rows_at_once]})
        for term in self.terms:
            if isinstance(term, ChecksSubjects):
                term.check(self.subjects, self.objective.text)
        with contextlib.ExitStack() as stack:
            for part in self.parts:
                stack.enter_context(part.installed())
            for step in sorted({term.window[0] for term in self.terms if term.window[0] in ahead[1:]}):
                self._gradients(self._batch(step), False)
                self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All that a resumed run needs: parts and optimiser. Every random draw follows from seed and step."""
        state = {f"part.{i}.{name}": t for i, part in enumerate(self.parts) for name, t in part.state_dict().items()}
        return state | {f"optimizer.{name}": t for name, t in optimizer_tensors(self.optimizer).items()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor], step: int, history: list[dict]) -> None:
        """Continues after `step` steps from what `state_dict` returned then."""
        for i, part in enumerate(self.parts):
            part.load_state_dict(_under(f"part.{i}.", state))
        restore_optimizer(self.optimizer, _under("optimizer.", state))
        self.step, self.history = step, list(history)

    def _optimise(self, step: int) -> dict:
        batch = self._batch(step)
        lr = self._set_learning_rate(step)
        measured = self._measures(step)
        values, norms = self._gradients(batch, measured)
        loss = sum(values.values())
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        length = gradient_norm(parameters)
        if not (math.isfinite(loss) and math.isfinite(length)):
            self.optimizer.zero_grad()
            raise not_a_number(self, batch, values)
        if self.settings.clip_gradients:
            torch.nn.utils.clip_grad_norm_(parameters, self.settings.clip_gradients)
        if not norms and measured:
            norms = self._single_term_norms(next(iter(values), ""))
        with fitting("What the optimizer keeps of every parameter does", "choose another optimizer, such as SGD, or train "
                     "fewer parts"):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for part in self.parts:
            part.after_step(step)
        self.step = step
        return {"step": step, "total": self.settings.steps, "loss": loss, "parts": values, "norms": norms, "lr": lr}

    def _batch(self, step: int) -> Batch:
        streams = self.recipe.rows(self.subjects, step, self.settings.batch_size, self.settings.seed)
        latents = {stream: self.latents.noised(rows, self.session.noise, self.settings.seed, step, stream,
                                               self.session.device) for stream, rows in streams.items()}
        return Batch(step, self.subjects, streams, latents)

    def _measures(self, step: int) -> bool:
        return step == 1 or step % MEASURE_GRADIENTS_EVERY == 0

    def _gradients(self, batch: Batch, measured: bool) -> tuple[dict[str, float], dict[str, float]]:
        """Fills .grad for the whole step; a first run out of memory halves the rows at once and tries again."""
        try:
            return self._micro_batches(batch, measured)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        rows = self.rows_at_once
        self.optimizer.zero_grad(set_to_none=True)
        mm.soft_empty_cache()
        if rows > 1 and self.rows_at_once == (self.settings.micro_batch or self.settings.batch_size):
            self.rows_at_once = rows // 2
            return self._gradients(batch, measured)
        raise step_too_large(batch.step, rows, self.settings, self.inputs)

    def _micro_batches(self, batch: Batch, measured: bool) -> tuple[dict[str, float], dict[str, float]]:
        norms = GradientNorms(self.parts) if measured and len(self.objective.active(batch.step)) > 1 else None
        totals: dict[str, float] = {}
        for start in range(0, batch.size, self.rows_at_once):
            part = batch.slice(slice(start, start + self.rows_at_once))
            for name, value in self.objective.backward(part, part.size / batch.size, norms).items():
                totals[name] = totals.get(name, 0.0) + value
        return totals, norms.norms() if norms else {}

    def _single_term_norms(self, term: str) -> dict[str, float]:
        return {f"{term}|{group['name']}": gradient_norm(group["params"]) for group in self.optimizer.param_groups}

    def _set_learning_rate(self, step: int) -> dict[str, float]:
        factor = schedule_factor(self.settings.schedule, step, self.settings.steps, self.settings.warmup_steps)
        rates = {}
        for group, settings in zip(self.optimizer.param_groups, (g for part in self.parts for g in part.groups),
                                   strict=True):
            group["lr"] = rates[settings.name] = settings.lr * factor
        return rates


def gradient_norm(parameters: Sequence[torch.nn.Parameter]) -> float:
    """Euclidean norm of all gradients together; parameters without one count as zero."""
    norms = [p.grad.float().norm() for p in parameters if p.grad is not None]
    return float(torch.stack(norms).norm()) if norms else 0.0


def _under(prefix: str, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
