"""What a patch saw while sampling: filled during the run, read by nodes that run after the sampler."""
from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..attention.maps import mean_over_layers, resized, size_of
from ..families.layers import AttentionLayer
from ..memory import in_gigabytes
from ..notice import notice

SAMPLINGS_KEPT = 4
LARGEST_RECORD = 4 * 2**30
ALL_STEPS = -1
_SAMPLE_ANEW = ("To sample anew, change the sampler's seed, or free the model and node cache in the page's menu, and "
                "run again.")


@dataclass
class Sampling:
    """One run of a sampler, as the patch saw it. Everything is on the CPU.

    images: pictures that were sampled.
    size: height and width of the latent.
    steps: steps of the schedule.
    factor: pixels of a picture per latent pixel, along one side.
    masks: step → (images, h, w) in 0..1, what the patch used.
    present, absent: words that some conditioning held, and words asked for that none held.
    unread: why words could not be looked for in some conditionings.
    result: the sampled latent (images, C, H, W) as the sampler gives it, once it has ended.
    branch_latent: latent of a second branch after sampling, or None.
    bytes: memory that maps and masks take.
    step: the one that was recorded last. is_full: there was no room for it.
    of_references: maps and masks, images and size are not those of the sampled pictures but of reference pictures that
        the model looked at.
    """

    images: int
    size: tuple[int, int]
    steps: int
    factor: int
    of_references: bool = False
    masks: dict[int, Tensor] = field(default_factory=dict)
    present: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    result: Tensor | None = None
    branch_latent: Tensor | None = None
    bytes: int = 0
    step: int | None = None
    is_full: bool = False
    _sums: dict[tuple[AttentionLayer, str], dict[int, tuple[Tensor, Tensor]]] = field(default_factory=dict)

    @property
    def words(self) -> tuple[str, ...]:
        """Words with maps, in the order in which they were found."""
        return tuple(dict.fromkeys(word for _, word in self._sums))

    @property
    def layers(self) -> tuple[AttentionLayer, ...]:
        """Layers with maps, in execution order."""
        return tuple(sorted({layer for layer, _ in self._sums}, key=lambda layer: layer.order))

    @property
    def map_steps(self) -> tuple[int, ...]:
        """Steps with maps of their own; empty if only their mean is kept."""
        return tuple(sorted({step for steps in self._sums.values() for step in steps} - {ALL_STEPS}))

    def require_maps(self, made_by: str, word: str | None = None) -> None:
        """Raises ValueError saying why there are no maps (of `word`), and what to do."""
        sentence = self.why_no_maps(made_by, word)
        if sentence:
            raise ValueError(sentence)

    def why_no_maps(self, made_by: str, word: str | None = None) -> str:
        """Why there are no maps (of `word`), and what to do; "" if there are."""
        if word in self.words or (word is None and self.words):
            return ""
        asked = (word,) if word else self.present or self.absent
        unread = "".join(f"A positive conditioning cannot be read: {reason}. " for reason in self.unread)
        if not asked:
            return (f"The positive conditioning does not say where words are. {unread}Encode it with Encode with "
                    f"Spans, or connect clip and prompt to {made_by} and write the words there.")
        named = f"'{', '.join(asked)}'"
        if set(asked) <= set(self.present):
            return (f"{made_by} recorded nothing of {named}: no step lies between its start_percent and "
                    "end_percent, or another node's patch before it rearranges the batch; put "
                    f"{made_by} before that node.")
        found = f"It has maps of: {', '.join(self.words)}. " if self.words else ""
        return (f"{made_by} found no {named} in the positive conditioning. {unread}{found}Write the words as they "
                "stand in the prompt, and encode it with Encode with Spans, or connect clip and prompt to "
                f"{made_by}.")

    def map(self, word: str, layer: AttentionLayer, step: int | None = None) -> Tensor | None:
        """Attention to `word` (images, h, w) in a step, or as mean over the recorded steps; None if there is none."""
        steps = self._sums.get((layer, word), {})
        found = [steps[each] for each in (steps if step is None else (step,)) if each in steps]
        if not found:
            return None
        values, weights = (sum(part.float() for part in parts) for parts in zip(*found))
        return torch.where(weights > 0, values / weights.clamp_min(1e-6), 0.0)

    def mean_map(self, word: str, step: int | None = None) -> Tensor | None:
        """As `map`, mean over the layers at the size of the largest."""
        maps = [found for layer in self.layers if (found := self.map(word, layer, step)) is not None]
        return mean_over_layers(maps, max(map(size_of, maps))) if maps else None

    def add(self, step: int, layer: AttentionLayer, word: str, values: Tensor, weights: Tensor, dtype) -> None:
        """Adds weighted maps (images, h, w) and their weights (1 or images, h, w)."""
        values, weights = values.cpu().to(dtype), weights.cpu().to(dtype)
        steps = self._sums.setdefault((layer, word), {})
        if step in steps:
            values, weights = (old + new for old, new in zip(steps[step], (values, weights)))
        else:
            self.bytes += values.nbytes + weights.nbytes
        steps[step] = values, weights


class Record:
    """What one patch node recorded. One object per run of the node; its wire is PERSONALIZE_RECORD.

    made_by: display name of the node, for sentences.
    every_step: keep the maps of every step (float16) in place of their mean over the steps.
    complete: it is full when its node has run, and no sampler has to be waited for.

    A sampler may run several times on the MODEL that carries the patch; the last runs are kept apart, all together at
    most LARGEST_RECORD bytes and one step. Where they would take more, earlier runs are forgotten, then later steps
    left out, which is said once.
    """

    NOT_IN_KEY = ("_samplings",)

    def __init__(self, made_by: str, every_step: bool = False, complete: bool = False):
        self.made_by, self.every_step, self.complete = made_by, every_step, complete
        self._samplings: deque[Sampling] = deque(maxlen=SAMPLINGS_KEPT)
        self._lock = threading.Lock()  # several GPUs may have a thread each

    def begin(self, images: int, size: tuple[int, int], steps: int, factor: int,
              of_references: bool = False) -> Sampling:
        """A sampling run of latents (images, C, *size) starts: what is added from now on belongs to it.

        steps, factor, of_references: as in Sampling.
        """
        self._samplings.append(Sampling(images, tuple(size), steps, factor, of_references))
        return self._samplings[-1]

    def finish(self, result: Tensor) -> None:
        """The run has ended with this latent, as the sampler gives it."""
        self.current.result = result.detach().float().cpu()

    @property
    def current(self) -> Sampling:
        """The run that began last. Raises ValueError if none has begun."""
        if not self._samplings:
            raise ValueError(self._empty())
        return self._samplings[-1]

    def sampling(self, latent: Tensor | None = None) -> Sampling:
        """The run whose result is `latent`; without one, the last. Raises ValueError if there is none.

        Runs that were interrupted do not count.
        """
        ended = [run for run in self._samplings if run.result is not None]
        if latent is None or self.complete or not ended:
            return ended[-1] if ended else self.current
        matching = [run for run in ended if run.result is not None and _begins_with(run.result, latent)]
        if not matching:
            raise ValueError(f"latent is not what a sampler on the MODEL of {self.made_by} gave in its last runs. "
                             "Connect that sampler's LATENT itself, not a changed one, or the decoded IMAGE in its "
                             "place. " + _SAMPLE_ANEW)
        return matching[-1]

    def add_maps(self, step: int, layer: AttentionLayer, maps: Tensor, words: tuple[str, ...],
                 weight: Tensor | float = 1.0) -> None:
        """Adds what one conditioning attended to in `step`.

        maps: (images, n words, h, w), conditional rows, mean over heads.
        weight: how much the conditioning counts at each pixel, a number or (1 or images, h, w); where several hold a
            word, and over several calls, the weighted mean is kept.
        """
        run = self.current
        if not self._keeps(run, step):
            return
        grid = layer.grid(run.size)
        weights = torch.as_tensor(weight, dtype=torch.float32, device=maps.device)
        weights = weights.expand(weights.shape[0] if weights.ndim else 1, *maps.shape[-2:])
        sums = resized(maps.detach().float() * weights[:, None], grid)
        weights = resized(weights, grid)
        dtype = torch.float16 if self.every_step else torch.float32
        with self._lock:
            for i, word in enumerate(words):
                run.add(step if self.every_step else ALL_STEPS, layer, word, sums[:, i], weights, dtype)

    def add_mask(self, step: int, mask: Tensor) -> None:
        """Keeps the mask (1 or images, h, w) in 0..1 that the patch used in `step`."""
        run = self.current
        if self._keeps(run, step):
            mask = mask.detach().to("cpu", torch.float16)
            run.bytes += 0 if step in run.masks else mask.nbytes
            run.masks[step] = mask.expand(run.images, -1, -1)

    def _keeps(self, run: Sampling, step: int) -> bool:
        """Whether there is room for a step, which is kept whole or not at all."""
        if step != run.step and not run.is_full:
            while len(self._samplings) > 1 and sum(each.bytes for each in self._samplings) >= LARGEST_RECORD:
                self._samplings.popleft()
            run.step, run.is_full = step, run.bytes >= LARGEST_RECORD
            if run.is_full:
                notice(
                    f"{self.made_by} holds {in_gigabytes(run.bytes)}, the most it may take, so its later steps are not "
                    "kept; record fewer words, layers or pictures, or keep the mean over steps."
                )
        return not run.is_full

    @property
    def branch_latent(self) -> Tensor | None:
        """Latent (images, C, H, W) of the last run's second branch, as LATENT holds it."""
        return self.current.branch_latent

    @branch_latent.setter
    def branch_latent(self, latent: Tensor | None) -> None:
        self.current.branch_latent = None if latent is None else latent.detach().float().cpu()

    def _empty(self) -> str:
        return (f"The record of {self.made_by} is empty: either no sampler uses its MODEL, or the sampler's result "
                f"came from ComfyUI's cache and nothing was sampled. Connect its MODEL to the sampler. {_SAMPLE_ANEW}")


def _begins_with(result: Tensor, latent: Tensor) -> bool:
    return (result.shape[1:] == latent.shape[1:] and len(result) >= len(latent)
            and torch.allclose(result[:len(latent)].to(latent.dtype), latent.cpu(), rtol=0, atol=0, equal_nan=True))
