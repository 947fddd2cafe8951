"""The training loop: the only one. Everything a technique adds comes in as loss terms, parts and recipes."""
from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import comfy.model_management as mm
import torch
from torch import Tensor

from ..text.encode import repeatable
from ..text.tokens import PromptTokenizer
from ..text.vectors import Vectors
from .batch import Batch, Latents, Row, Stream
from .denoiser import check_same_family
from .failures import NodeInputs, fitting, is_out_of_memory, not_a_number, step_too_large
from .gradient_norms import GradientNorms
from .interfaces import ChecksSubjects, TextSide
from .optimizer import build_optimizer, optimizer_tensors, restore_optimizer, schedule_factor
from .parts.part import Artifact, AttachedPart
from .passes import Objective
from .plan import Plan
from .session import Session

MEASURE_GRADIENTS_EVERY = 50  # such a step takes up to twice as long, as each term goes back alone
PROMPTS_AHEAD = 100  # steps whose prompts are looked at before the first


@dataclass(frozen=True)
class State:
    """Where a run stands after `step` steps: the parts' and the optimiser's tensors, and one record per step."""

    tensors: Mapping[str, Tensor]
    step: int
    history: Sequence[dict]


class Trainer:
    """One run, as `open_training` makes it: its parts, its objective, its optimiser, and where it stands.

    frozen: vectors of words that no part trains. inputs: of the node that trains, for messages.
    step: optimiser steps done. history: one record per step, {step, total, loss, parts, norms, lr}.
    """

    def __init__(self, session: Session, plan: Plan, parts: Sequence[AttachedPart], latents: Latents,
                 frozen: Vectors, inputs: NodeInputs):
        self.session, self.plan, self.parts, self.latents = session, plan, parts, latents
        self.frozen, self.inputs = frozen, inputs
        counts = {name: rows.count for name, rows in frozen.items()}
        for part in parts:
            counts.update(part.placeholders)
        text = TextSide(PromptTokenizer(session.clip, counts), session.family.layers)
        self.objective = Objective(session, parts, plan.terms, text, frozen, plan.settings.seed,
                                   plan.settings.checkpointing)
        self.groups = [group for part in parts for group in part.groups]
        self.optimizer = build_optimizer(plan.settings.optimizer, self.groups, plan.settings.weight_decay)
        self.rows_at_once = plan.settings.micro_batch or plan.settings.batch_size
        self.step = 0
        self.history: list[dict] = []

    def run(self, each_step: Callable[[Trainer, dict], bool]) -> None:
        """Trains up to the last step; after each one `each_step(self, record)` says whether to go on.

        Raises TrainingDiverged, OutOfMemory, or ComfyUI's interruption; the parameters then are those after `step`.
        """
        started, first, steps = time.monotonic(), self.step, self.plan.settings.steps
        while self.step < steps:
            mm.throw_exception_if_processing_interrupted()
            record = self.optimise(self.step + 1)
            seconds_per_step = (time.monotonic() - started) / (self.step - first)
            record["seconds_left"] = seconds_per_step * (steps - self.step)
            self.history.append(record)
            if not each_step(self, record):
                break

    def rehearse(self) -> None:
        """Looks before the first step for what a later one would fail at: models, prompts and templates that do not go
        together, and losses that begin later, whose first gradients are computed and forgotten. Raises ValueError."""
        check_same_family(self.session)
        settings, text = self.plan.settings, self.objective.text
        ahead = range(self.step + 1, settings.steps + 1)
        for step in ahead[:PROMPTS_AHEAD]:
            for rows in self._rows(step).values():
                for row in rows:
                    text.tokenizer(row.prompt)
        for term in self.plan.terms:
            if isinstance(term, ChecksSubjects):
                term.check(self.plan.subjects, text)
        for step in sorted({term.window[0] for term in self.plan.terms if term.window[0] in ahead[1:]}):
            self._gradients(self.batch(step), False)
            self.optimizer.zero_grad(set_to_none=True)

    def seconds_of_a_step(self) -> float:
        """What the next step takes: its gradients are computed twice and forgotten, as the first time makes ready."""
        for _ in range(2):
            started = time.monotonic()
            self._gradients(self.batch(self.step + 1), False)
            self.optimizer.zero_grad(set_to_none=True)
            if self.session.device.type == "cuda":
                torch.cuda.synchronize(self.session.device)
        return time.monotonic() - started

    def state(self) -> State:
        """All that a resumed run needs. Every random draw follows from seed and step."""
        tensors = {f"part.{i}.{name}": t for i, part in enumerate(self.parts) for name, t in part.state_dict().items()}
        tensors |= {f"optimizer.{name}": t for name, t in optimizer_tensors(self.optimizer).items()}
        return State(tensors, self.step, self.history)

    def resume(self, state: State) -> None:
        """Continues from what `state` returned."""
        for i, part in enumerate(self.parts):
            part.load_state_dict(_under(f"part.{i}.", state.tensors))
        restore_optimizer(self.optimizer, _under("optimizer.", state.tensors))
        self.step, self.history = state.step, list(state.history)

    def vectors(self) -> Vectors:
        """Vectors (n, d) of the words that concepts keep, as they are now."""
        return {**self.frozen, **{name: rows for part in self.parts for name, rows in part.learned_vectors().items()}}

    def shown_vectors(self) -> Vectors:
        """The same for a preview, with the words of parts that compute them."""
        return {**self.frozen, **{name: rows for part in self.parts for name, rows in part.shown_vectors().items()}}

    def weights(self) -> dict[str, Tensor]:
        """A LoRA file's tensors, on the CPU, as they are now."""
        return {name: t.cpu() for part in self.parts for name, t in part.weights().items()}

    def files(self) -> list[Artifact]:
        """What else the parts keep, as it is now."""
        return [artifact for part in self.parts for artifact in part.files()]

    def batch(self, step: int) -> Batch:
        """What step `step` (from 1) sees."""
        seed, noise, device = self.plan.settings.seed, self.session.noise, self.session.device
        streams = self._rows(step)
        latents = {stream: self.latents.noised(rows, noise, seed, step, stream, device)
                   for stream, rows in streams.items()}
        return Batch(step, self.plan.subjects, streams, latents)

    def _rows(self, step: int) -> Mapping[Stream, tuple[Row, ...]]:
        settings = self.plan.settings
        return self.plan.recipe.rows(self.plan.subjects, step, settings.batch_size, settings.seed)

    def optimise(self, step: int) -> dict:
        """One step of the optimiser; returns its record."""
        batch = self.batch(step)
        lr = self._set_learning_rate(step)
        measured = self._measures(step)
        values, norms = self._gradients(batch, measured)
        loss = sum(values.values())
        parameters = [p for group in self.groups for p in group.params]
        length = gradient_norm(parameters)
        if not (math.isfinite(loss) and math.isfinite(length)):
            self.optimizer.zero_grad()
            raise not_a_number(self, batch, values)
        if self.plan.settings.clip_gradients:
            torch.nn.utils.clip_grad_norm_(parameters, self.plan.settings.clip_gradients)
        if not norms and measured:
            norms = self._single_term_norms(next(iter(values), ""))
        with fitting("What the optimizer keeps of every parameter does", "choose another optimizer, such as SGD, or "
                     "train fewer parts"):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for part in self.parts:
            part.after_step(step)
        self.step = step
        return {"step": step, "total": self.plan.settings.steps, "loss": loss, "parts": values, "norms": norms,
                "lr": lr}

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
        if rows > 1 and self.rows_at_once == (self.plan.settings.micro_batch or self.plan.settings.batch_size):
            self.rows_at_once = rows // 2
            return self._gradients(batch, measured)
        raise step_too_large(batch.step, rows, self.plan.settings, self.inputs)

    def _micro_batches(self, batch: Batch, measured: bool) -> tuple[dict[str, float], dict[str, float]]:
        norms = GradientNorms(self.parts) if measured and len(self.objective.active(batch)) > 1 else None
        totals: dict[str, float] = {}
        for piece in self._pieces(batch):
            values = self.objective.backward_alone(piece, norms) if norms else self.objective.backward(piece)
            for name, value in values.items():
                totals[name] = totals.get(name, 0.0) + value
        return totals, norms.norms() if norms else {}

    def _pieces(self, batch: Batch) -> Iterator[Batch]:
        for micro_batch in batch.micro_batches(self.rows_at_once):
            yield from micro_batch.apart({stream: self._kinds(rows) for stream, rows in micro_batch.rows.items()})

    def _kinds(self, rows: Sequence[Row]) -> list[tuple]:
        """Of rows whose prompts the text encoders and the denoiser can run together: of one length, but for CLIP's
        that are repeated. Of other encoders, prompts that a loss makes of two subjects' words differ in length, too."""
        tokenizer = self.objective.text.tokenizer
        lengths = [tokenizer(row.prompt).layout.length for row in rows]
        if tokenizer.chunked:
            return [(0,) if repeatable(lengths) else (length,) for length in lengths]
        return [(length, row.subject) for length, row in zip(lengths, rows)]

    def _single_term_norms(self, term: str) -> dict[str, float]:
        return {f"{term}|{group.name}": gradient_norm(group.params) for group in self.groups}

    def _set_learning_rate(self, step: int) -> dict[str, float]:
        settings = self.plan.settings
        factor = schedule_factor(settings.schedule, step, settings.steps, settings.warmup_steps)
        for group, optimised in zip(self.groups, self.optimizer.param_groups, strict=True):
            optimised["lr"] = group.lr * factor
        return {group.name: group.lr * factor for group in self.groups}


def gradient_norm(parameters: Sequence[torch.nn.Parameter]) -> float:
    """Euclidean norm of all gradients together; parameters without one count as zero."""
    norms = [p.grad.float().norm() for p in parameters if p.grad is not None]
    return float(torch.stack(norms).norm()) if norms else 0.0


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
