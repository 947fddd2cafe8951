"""Draws the pictures by which a run is judged while it goes on, within their share of the time."""
from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import comfy.model_management as mm
import torch

from ..families.family import PreviewDefaults
from ..notice import notice
from .failures import is_out_of_memory
from .loop import Trainer
from .preview import Painter, preview_noise
from .run_pictures import MOST_PHOTOGRAPHS, scene_of
from .saving import Saver
from .validation import NO_BOUND, Asked, Pace, Scene, Spending, Validation, scenes_of


class RunPictures:
    """The pictures of one run, from its first step in this process to its last.

    One that cannot be drawn is left out, and training goes on. words: that stand in the prompts. every: steps between
    steps with pictures, 0 for none.
    """

    def __init__(self, trainer: Trainer, vae, validation: Validation, words: Sequence[str], every: int, saver: Saver):
        self._trainer, self._vae, self._validation, self._saver = trainer, vae, validation, saver
        self._live, settings = saver.live, trainer.plan.settings
        self.size = side_of(validation, trainer.plan.subjects[0].pictures[0].size)
        self.scenes = scenes_of(validation, words)
        self._seed = settings.seed if validation.seed is None else validation.seed
        self._asked = Asked(every, len(self.scenes), settings.steps)
        self._spending = Spending(validation.share, settings.steps - trainer.step)
        self._at_once = validation.noises
        self._began, self._noticed = time.monotonic(), ""
        self._told = Pace(every, len(self.scenes))

    def begin(self) -> None:
        """Before the first step: draws what belongs to this one, unless an earlier execution has."""
        step, began = self._trainer.step, time.monotonic()
        missing = self._missing(step)
        if self._asked.every and step % self._asked.every == 0 and missing and self._validation.share:
            if self._validation.share < NO_BOUND:
                self._spending.step = self._trainer.seconds_of_a_step()
                self._spending.prepared(time.monotonic() - began)
            self._draw(step, missing, bounded=True)
        self._began = time.monotonic() - self._spending.pictures

    def after_step(self, step: int, now: bool) -> None:
        """Draws what is due after a step. now: the person wants to see all of it."""
        self._spending.trained(time.monotonic() - self._began - self._spending.pictures)
        if now:
            self._draw(step, self.scenes, bounded=False)
        elif self._asked.is_due(step, self._asked.every) and (
                self._spending.is_unknown or self._is_due(step, self._pace(step))):
            self._draw(step, self.scenes, bounded=True)

    def end(self) -> None:
        """The report gets what the pictures cost in the end."""
        if self._spending.pictures:
            self._tell_cost(self._asked.steps + 1)

    def _is_due(self, step: int, pace: Pace) -> bool:
        return bool(pace.pictures) and self._asked.is_due(step, pace.every)

    def _pace(self, step: int, drawn: int = 0) -> Pace:
        """From `step` on, of which so many pictures are drawn already."""
        return self._asked.affordable(step, self._spending.affordable() + drawn)

    def _missing(self, step: int) -> list[Scene]:
        there = {scene_of(entry) for entry in self._live.report["previews"] if entry["step"] == step}
        return [scene for scene in self.scenes if (scene.prompt, scene.noise) not in there]

    def _draw(self, step: int, scenes: Sequence[Scene], bounded: bool) -> None:
        watch = _Stopwatch()
        if not self._live.report.get("photographs"):
            self._save_photographs()
        faults = self._draw_each(step, scenes, bounded, watch)
        mm.soft_empty_cache()  # only now, as an error held what was drawn so far
        self._trainer.session.load()
        self._spending.drawn(watch.lap(), 0)
        self._tell_faults(step, len(scenes), faults)
        self._tell_cost(step + 1)

    def _draw_each(self, step: int, scenes: Sequence[Scene], bounded: bool, watch: _Stopwatch) -> list[str]:
        """Draws and saves; why pictures could not be drawn, each."""
        painter, fault = self._painter(scenes)
        if painter is None:
            return [fault] * len(scenes)
        done: list[Scene] = []
        faults = []
        while batch := self._next(step, scenes, done, bounded):
            fault = self._draw_batch(painter, step, batch)
            if fault and len(batch) > 1:
                self._at_once = 1
                continue
            done += batch
            faults += [fault] if fault else []
            self._spending.drawn(watch.lap(), len(batch))
            if self._live.given("stop"):
                break
        return faults

    def _next(self, step: int, scenes: Sequence[Scene], done: Sequence[Scene], bounded: bool) -> list[Scene]:
        """What to draw next of a step's pictures: some of one prompt, at most as many as fit into memory and may be
        drawn; none if that is all."""
        if bounded:
            most = 1 if self._spending.is_unknown else self._pace(step, len(done)).pictures
            scenes = scenes[:most]
        left = [scene for scene in scenes if scene not in done]
        return [scene for scene in left if scene.prompt == left[0].prompt][:self._at_once]

    def _painter(self, scenes: Sequence[Scene]) -> tuple[Painter | None, str]:
        prompts = list(dict.fromkeys(scene.prompt for scene in scenes))
        try:
            return Painter(self._trainer.session, self._vae, self._trainer.shown_vectors(), prompts), ""
        except mm.InterruptProcessingException:
            raise
        except Exception as error:
            return None, self._why(error)

    def _draw_batch(self, painter: Painter, step: int, batch: Sequence[Scene]) -> str:
        """Draws and saves pictures of one prompt; "", or why they cannot be drawn."""
        model = self._trainer.session.model
        noise = torch.cat([preview_noise(model, self.size, self._seed, scene.noise) for scene in batch])
        try:
            pictures = painter.draw(batch[0].prompt, noise, self._how, self._seed)
        except mm.InterruptProcessingException:
            raise
        except Exception as error:
            return self._why(error)
        for scene, picture in zip(batch, pictures, strict=True):
            self._saver.save_drawn(picture, step, self.scenes.index(scene), scene)
        return ""

    @property
    def _how(self) -> PreviewDefaults:
        asked, suits = self._validation, self._trainer.session.family.preview
        return PreviewDefaults(asked.sampler or suits.sampler, asked.scheduler or suits.scheduler,
                               asked.steps or suits.steps, asked.guidance or suits.guidance)

    def _save_photographs(self) -> None:
        """Some pictures of every subject as they came, in turn."""
        pictures = [subject.pictures for subject in self._trainer.plan.subjects]
        in_turn = [each for row in itertools.zip_longest(*pictures) for each in row if each is not None]
        try:
            self._saver.save_photographs(
                picture.photograph(2 * max(self.size)) for picture in in_turn[:MOST_PHOTOGRAPHS])
        except ValueError as error:
            notice(f"No photographs stand beside the pictures: {error}")

    def _why(self, error: Exception) -> str:
        if is_out_of_memory(error):
            return ("drawing it does not fit into memory beside the training; set preview_every to 0, or size of "
                    f"{'Validation Pictures' if self._validation.size else 'Subject'} lower")
        return str(error).strip().rstrip(".") or type(error).__name__

    def _tell_faults(self, step: int, wanted: int, faults: Sequence[str]) -> None:
        if not faults:
            return
        what = (f"The preview at step {step} is" if wanted == 1 else
                f"{len(faults)} of {wanted} pictures of step {step} are")
        notice(f"{what} left out: {faults[0]}. Training goes on.")

    def _tell_cost(self, step: int) -> None:
        """step: the next one that may have pictures."""
        asked, spending = self._asked, self._spending
        goes_on = bool(asked.every) and step <= asked.steps
        pace = self._told = self._pace(step) if goes_on else self._told
        ahead = pace.pictures * asked.times(step, pace.every) if goes_on else 0
        cost = {"seconds": spending.pictures, "share": spending.so_far, "expected": spending.expected(ahead),
                "bound": spending.share, "every": pace.every, "asked": asked.every, "pictures": pace.pictures,
                "wanted": asked.pictures, "steps": asked.steps}
        self._live.report["picture_cost"] = cost
        self._live.send("cost", cost=cost)
        said = bounded_sentence(cost) if goes_on else ""
        if said and said != self._noticed:
            self._noticed = said
            notice(said)


class _Stopwatch:
    def __init__(self):
        self._began = time.monotonic()

    def lap(self) -> float:
        """Seconds since it was last asked, or made."""
        before, self._began = self._began, time.monotonic()
        return self._began - before


def side_of(validation: Validation, of_subject: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the pictures."""
    return (validation.size, validation.size) if validation.size else of_subject


def bounded_sentence(cost: Mapping[str, Any]) -> str:
    """How the pictures differ from what was asked for, so that they take no more than their share; "" if they do
    not."""
    bound = f"{cost['bound']:.0%}"
    if not cost["pictures"]:
        return (f"There are no more validation pictures, as they would take more than {bound} of the run's time; set "
                "share_of_time higher, or draw fewer or smaller ones.")
    if cost["pictures"] == cost["wanted"] and cost["every"] == cost["asked"]:
        return ""
    often = (f"every {cost['every']} steps" if cost["every"] < cost["steps"] else
             "before the first step and after the last one")
    fewer = f", {cost['pictures']} of {cost['wanted']} pictures" if cost["pictures"] < cost["wanted"] else ""
    return f"Validation {often} instead of every {cost['asked']}{fewer}: {cost['expected']:.0%} of the time."
