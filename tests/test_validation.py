"""The pictures by which a training is judged: from the same noises at every step, within a share of the time, and
without a change of what is learned."""
from __future__ import annotations

import itertools
import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path

import comfy.sample
import folder_paths
import pytest
import torch
from PIL import Image

from personalize.nodes.families.unet import UNet
from personalize.nodes.run_files import files_of_run
from personalize.nodes.training import drawing, loop
from personalize.nodes.training.loop import Trainer
from personalize.nodes.training.next_run import START_OVER
from personalize.nodes.training.nodes_validation import PROMPTS, SUITS, PersonalizeValidation
from personalize.nodes.training.parts.embedding import EmbeddingPart
from personalize.nodes.training.parts.weights import AdapterPart
from personalize.nodes.training.plan import Settings
from personalize.nodes.training.progress import Live, Origin
from personalize.nodes.training.run_folder import saved_report
from personalize.nodes.training.validation import Asked, Pace, Spending, Validation, scenes_of
from support.trainings import learned, make_job, run, subject

pytestmark = pytest.mark.usefixtures("execute")
TWO_BY_TWO = Validation(("a photo of {}", "{} in the snow"), noises=2, steps=1)


@pytest.fixture
def drawn(monkeypatch) -> list[dict]:
    """What each call of the sampler got: noise, sampler, scheduler, steps, guidance."""
    calls, sample = [], comfy.sample.sample

    def watched(model, noise, steps, guidance, sampler, scheduler, *args, **more):
        calls.append({"noise": noise.clone(), "how": (sampler, scheduler, steps, guidance)})
        return sample(model, noise, steps, guidance, sampler, scheduler, *args, **more)

    monkeypatch.setattr(comfy.sample, "sample", watched)
    return calls


def places(report) -> list[tuple]:
    return [(entry["step"], entry["prompt"], entry["noise"]) for entry in report["previews"]]


def folder_of(report) -> Path:
    return Path(folder_paths.get_output_directory()) / "personalize" / report["run"]


# ------------------------------------------------------------------------------------------------ how many
def counted(asked: Asked, pace: Pace, first: int) -> int:
    """Pictures from step `first` on, one step after the other."""
    return sum(pace.pictures for step in range(first, asked.steps + 1)
               if pace.pictures and (step % pace.every == 0 or step == asked.steps))


@pytest.mark.parametrize("every, steps", [(1, 7), (5, 60), (50, 300), (50, 320), (100, 30)])
def test_as_many_pictures_as_are_affordable(every, steps):
    for pictures, first, affordable in itertools.product((1, 2, 10), (0, every, steps), (0, 1, 2, 5, 19, 40, 10**6)):
        asked = Asked(every, pictures, steps)
        if first > steps:
            continue
        pace = asked.affordable(first, affordable)
        assert counted(asked, pace, first) <= affordable and pace.pictures <= pictures
        more_often = [Pace(every * factor, pictures) for factor in (1, 2, 5, 10, 20, 50) if every * factor < pace.every]
        assert all(counted(asked, each, first) > affordable for each in more_often)
        if pace.pictures < pictures:
            assert counted(asked, replace(pace, pictures=pace.pictures + 1), first) > affordable


def test_a_run_of_300_steps_with_ten_pictures_that_take_as_long_as_their_training():
    asked, spending = Asked(50, 10, 300), Spending(0.25, 300)
    spending.step = 1.0
    spending.drawn(6.0, 1)
    assert spending.affordable() == 14 and asked.affordable(0, 1 + 14) == Pace(500, 7)
    spending.drawn(4.0, 9)
    assert spending.each == 1.0 and asked.affordable(0, 10 + spending.affordable()) == Pace(50, 10)
    for step in range(1, 101):
        spending.trained(step * 0.25)
    assert asked.affordable(100, spending.affordable()) == Pace(500, 10)
    assert spending.so_far == pytest.approx(10 / 35) and spending.expected(10) == pytest.approx(20 / 95)


def test_the_share_of_a_run_whose_steps_were_not_timed_yet_is_not_told():
    spending = Spending(1.0, 10)
    spending.drawn(5.0, 1)
    assert spending.expected(2) is None
    spending.trained(2.0)
    assert spending.expected(3) == pytest.approx(20 / 40)


@dataclass
class Clock:
    """Seconds that pass as a test says."""

    seconds: float = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def takes(self, monkeypatch, owner, name: str, seconds: float) -> None:
        """A call of it takes so long."""
        call = getattr(owner, name)

        def timed(*args, **more):
            self.seconds += seconds
            return call(*args, **more)

        monkeypatch.setattr(owner, name, timed)


def test_pictures_take_at_most_their_share_of_a_run(sd15, monkeypatch, caplog):
    """A picture takes as long as two steps: all that are asked for, two after each of 60, would take four times as much
    time as the training."""
    clock = Clock()
    for module in (drawing, loop):
        monkeypatch.setattr(module, "time", clock)
    clock.takes(monkeypatch, Trainer, "_gradients", 1.0)
    clock.takes(monkeypatch, comfy.sample, "sample", 2.0)
    with caplog.at_level(logging.WARNING, "personalize"):
        report = run(make_job(sd15, "share", steps=60, settings=Settings(steps=60, batch_size=1), preview_every=1,
                              validation=replace(TWO_BY_TWO, noises=1, share=0.3))).report
    cost, count = report["picture_cost"], len(report["previews"])
    assert clock.seconds == cost["seconds"] + 60, "all that is not the pictures' is the training's"
    assert cost["seconds"] == 2.0 * count + 2.0, "two steps were computed to know what a step takes"
    assert cost["share"] == pytest.approx(cost["seconds"] / clock.seconds)
    assert 0.2 < cost["share"] <= 0.3
    assert cost["asked"] == 1 < cost["every"]
    assert re.search(r"Validation every \d+ steps instead of every 1: \d+% of the time\.", caplog.text)


def test_a_share_of_nothing_is_for_sample_now(sd15, after_step):
    job = make_job(sd15, "share-of-nothing", steps=3, preview_every=1, validation=replace(TWO_BY_TWO, share=0.0))
    assert run(job).report["previews"] == []
    after_step(2, lambda live: live.command("sample"))
    again = run(replace(job, resume=START_OVER)).report
    assert len(again["previews"]) == 4 and {entry["step"] for entry in again["previews"]} == {2}


# ------------------------------------------------------------------------------------------------ which
def test_every_prompt_from_every_noise_and_the_same_ones_at_every_step(sd15, drawn):
    report = run(make_job(sd15, "scenes", steps=2, preview_every=1, validation=replace(
        TWO_BY_TWO, sampler="euler_ancestral", scheduler="karras", guidance=2.5))).report
    prompts = ["a photo of <my-dog>", "<my-dog> in the snow"]
    assert places(report) == [(step, prompt, noise) for step in (0, 1, 2) for noise in (0, 1) for prompt in prompts]
    assert {each["how"] for each in drawn} == {("euler_ancestral", "karras", 1, 2.5)}
    noises = [each["noise"] for each in drawn]
    assert len(noises) == 6 and all(torch.equal(noise, noises[0]) for noise in noises)
    assert noises[0].shape[0] == 2 and not torch.equal(noises[0][0], noises[0][1])
    single = run(make_job(sd15, "scenes-single", steps=1, preview_every=1)).report
    assert places(single) == [(0, prompts[0], 0), (1, prompts[0], 0)] and torch.equal(drawn[-1]["noise"], noises[0][:1])


def test_each_subject_takes_its_turn_and_a_prompt_without_a_word_is_drawn_once():
    validation = Validation(("a photo of {}", "a dog"), noises=2)
    assert [(scene.prompt, scene.noise) for scene in scenes_of(validation, ["<rex>", "<toy>"])] == [
        (prompt, noise) for noise in (0, 1) for prompt in ("a photo of <rex>", "a photo of <toy>", "a dog")]


def test_training_is_the_same_with_and_without_pictures(sd15):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    job = make_job(sd15, "beside-nothing", steps=4, parts=(EmbeddingPart(), AdapterPart(lr=1e-2)))
    plain = run(job)
    watched = run(replace(job, name="beside-pictures", preview_every=1, validation=replace(
        TWO_BY_TWO, sampler="dpmpp_2m_sde", share=0.9, steps=2)))
    assert watched.report["previews"] and torch.equal(torch.get_rng_state(), before)
    assert torch.equal(learned(plain), learned(watched)) and plain.weights.keys() == watched.weights.keys()
    assert all(torch.equal(tensor, watched.weights[name]) for name, tensor in plain.weights.items())
    assert [record["loss"] for record in plain.report["history"]] == [
        record["loss"] for record in watched.report["history"]]


# ------------------------------------------------------------------------------------------------ memory, faults
def test_pictures_that_do_not_fit_together_are_drawn_one_by_one(sd15, monkeypatch, caplog):
    sample, sizes = comfy.sample.sample, []

    def small_memory(model, noise, *args, **more):
        sizes.append(len(noise))
        if len(noise) > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return sample(model, noise, *args, **more)

    monkeypatch.setattr(comfy.sample, "sample", small_memory)
    report = run(make_job(sd15, "one-by-one", steps=1, preview_every=1, validation=TWO_BY_TWO)).report
    assert len(report["previews"]) == 8 and sizes == [2, *[1] * 8] and "left out" not in caplog.text


def test_what_cannot_be_drawn_is_left_out_and_training_goes_on(sd15, monkeypatch, caplog):
    sample, calls = comfy.sample.sample, []

    def broken(model, noise, *args, **more):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("a broken sampler")
        return sample(model, noise, *args, **more)

    monkeypatch.setattr(comfy.sample, "sample", broken)
    report = run(make_job(sd15, "left-out", steps=1, preview_every=1, validation=replace(TWO_BY_TWO, noises=1))).report
    assert places(report) == [(0, "a photo of <my-dog>", 0), (1, "a photo of <my-dog>", 0),
                              (1, "<my-dog> in the snow", 0)]
    assert "1 of 2 pictures of step 0 are left out: a broken sampler. Training goes on." in caplog.text


def test_stop_does_not_wait_for_all_pictures(sd15, after_step):
    after_step(2, lambda live: live.command("stop"))
    report = run(make_job(sd15, "stopped-between", steps=3, preview_every=2, validation=TWO_BY_TWO)).report
    assert len(report["history"]) == 2 and [entry["step"] for entry in report["previews"]].count(2) == 2


# ------------------------------------------------------------------------------------------------ on the disk
def test_pictures_are_found_again_though_the_report_is_lost(sd15, monkeypatch):
    job = make_job(sd15, "found-again", steps=2, preview_every=2, validation=TWO_BY_TWO,
                   subjects=(subject(pictures=2), subject(pictures=2, placeholder="<my-toy>")))
    first = run(job).report
    assert len(first["previews"]) == 16 and len(first["photographs"]) == 4
    for entry in (*first["previews"], *({"image": image} for image in first["photographs"])):
        assert Image.open(folder_of(first) / entry["image"]["filename"]).size == (64, 64)
    assert saved_report(first["run"])["picture_cost"] == first["picture_cost"]
    (folder_of(first) / "report.json").unlink()
    again = run(job).report
    assert again["previews"] == first["previews"] and again["photographs"] == first["photographs"]
    names = {file.path.name for file in files_of_run(first["run"])}
    assert names == {path.name for path in folder_of(first).iterdir()} | {
        file.path.name for file in files_of_run(first["run"]) if file.kind != "output"}


def test_a_killed_run_draws_what_it_has_not_come_to(sd15, drawn):
    job = make_job(sd15, "half-drawn", steps=2, save_every=1, preview_every=2, validation=TWO_BY_TWO)
    first = run(replace(job, settings=Settings(steps=1, batch_size=2))).report
    assert {entry["step"] for entry in first["previews"]} == {0, 1}
    kept = folder_of(first) / "preview-000001-3.png"
    kept.unlink()
    del drawn[:]
    resumed = run(replace(job, preview_every=1)).report
    assert len(drawn) == 1 + 2 and len(resumed["previews"]) == 12 and kept.exists()


# ------------------------------------------------------------------------------------------------ the node
def asked(**changes):
    inputs = {"prompts": PROMPTS, "noises": 2, "share_of_time": 0.25, "seed": 0, "size": 0, "sampler": SUITS,
              "scheduler": SUITS, "sampling_steps": 0, "cfg": 0.0, **changes}
    return PersonalizeValidation.execute(**inputs).result[0]


def test_the_node_takes_what_suits_the_model(sd15, drawn):
    validation = asked(prompts="a photo of {}\n\n a photo of {} \n", noises=1, share_of_time=1.0, sampling_steps=2)
    assert validation.prompts == ("a photo of {}",)
    run(make_job(sd15, "suits", steps=1, preview_every=0, validation=validation))
    run(make_job(sd15, "suits-drawn", steps=1, preview_every=1, validation=validation))
    suits = UNet.preview
    assert {each["how"] for each in drawn} == {(suits.sampler, suits.scheduler, 2, suits.guidance)}


@pytest.mark.parametrize("changes, sentence", [
    ({"prompts": " \n"}, "There are no prompts; write one a line"),
    ({"prompts": "{} " * 400}, "A prompt has 1199 letters; write at most 1000 a line"),
    ({"noises": 16}, "5 prompts from 16 noises are 80 pictures at a time; write fewer prompts or set noises lower")])
def test_what_the_node_does_not_take(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        asked(**changes)


def test_live_tells_what_waits(sd15):
    live = Live(Origin("run-12345678", "", None), 1)
    live.command("stop")
    assert live.given("stop") and live.take("stop") and not live.given("stop")
