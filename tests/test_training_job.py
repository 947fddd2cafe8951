"""A whole training: what it saves, what it returns the second time, and what is left when it ends early."""
from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import comfy.model_management
import comfy.sample
import comfy.sd
import pytest
import torch

from personalize.nodes.training import job as job_module
from personalize.nodes.training import run_folder
from personalize.nodes.training.diffusion import DiffusionLoss
from personalize.nodes.training.failures import TrainingDiverged
from personalize.nodes.training.parts.embedding import EmbeddingPart
from personalize.nodes.training.parts.weights import AdapterPart, KeyValuePart, UNetPart
from personalize.nodes.training.plan import Settings
from personalize.nodes.training.recipe import TemplateRecipe
from personalize.nodes.training.run_key import run_key
from support.trainings import learned, make_job, run, sample, subject

pytestmark = pytest.mark.usefixtures("execute")  # the server object that runs report to


@pytest.mark.smoke
def test_the_second_time_nothing_is_trained(sd15, steps_taken):
    job = make_job(sd15, "second-time")
    first = run(job)
    assert steps_taken == [1, 2, 3, 4]
    again = run(job)
    assert steps_taken == [1, 2, 3, 4]
    assert torch.equal(learned(again), learned(first))
    assert [r["loss"] for r in again.report["history"]] == [r["loss"] for r in first.report["history"]]


def test_more_steps_continue_and_start_over_does_not(sd15, steps_taken):
    run(make_job(sd15, "longer", steps=2))
    longer = run(make_job(sd15, "longer", steps=5))
    assert steps_taken == [1, 2, 3, 4, 5]
    anew = run(make_job(sd15, "longer", steps=5, resume="start over"))
    assert steps_taken == [1, 2, 3, 4, 5, 1, 2, 3, 4, 5]
    assert torch.equal(learned(anew), learned(longer))


def test_fewer_steps_return_to_that_step(sd15, steps_taken):
    longer = run(make_job(sd15, "shorter", steps=6, save_every=2))
    shorter = run(make_job(sd15, "shorter", steps=3))
    assert steps_taken == [1, 2, 3, 4, 5, 6, 3]
    assert [r["step"] for r in shorter.report["history"]] == [1, 2, 3]
    again = run(make_job(sd15, "shorter", steps=6))
    assert len(steps_taken) == 7
    assert torch.equal(learned(again), learned(longer))
    assert [r["loss"] for r in again.report["history"]] == [r["loss"] for r in longer.report["history"]]


@pytest.mark.parametrize("change", [
    dict(settings=Settings(steps=2, batch_size=2, seed=9)), dict(parts=(EmbeddingPart(lr=1e-3),)),
    dict(terms=(DiffusionLoss(weight=2.0),)), dict(subjects=(subject(2),)), dict(recipe=TemplateRecipe(("{} there",)))])
def test_other_settings_are_another_run(sd15, steps_taken, change):
    name = f"other-{next(iter(change))}"
    run(make_job(sd15, name, steps=2))
    run(make_job(sd15, name, steps=2, **change))
    assert steps_taken == [1, 2, 1, 2]
    assert len(list(job_module.RunFolder(name, "x").path.parent.glob(f"{name}-*"))) == 2


def test_every_saved_step_can_be_used(sd15, steps_taken):
    job = make_job(sd15, "steps", save_every=2)
    whole = run(job)
    assert [s["step"] for s in whole.report["saved"]] == [2, 4]
    halfway = run(replace(job, use_step=2))
    short = run(make_job(sd15, "steps-short", steps=2))
    assert torch.equal(learned(halfway), learned(short))
    assert run(replace(job, use_step=4)).concepts[0].settings == whole.concepts[0].settings, "else it is saved twice"
    with pytest.raises(ValueError, match="use_step is 3 but this run has saved steps 2, 4"):
        run(replace(job, use_step=3))
    Path(whole.report["saved"][0]["files"][0]).unlink()
    with pytest.raises(ValueError, match="use_step is 2 but its file .* has been deleted"):
        run(replace(job, use_step=2))


def test_a_step_whose_weights_were_too_large_to_save_is_not_returned(sd15, monkeypatch):
    monkeypatch.setattr(run_folder, "LARGEST_WEIGHTS_PER_STEP", 1000)
    job = make_job(sd15, "large", parts=(EmbeddingPart(), UNetPart(lr=1e-3)), save_every=2)
    report = run(job).report
    assert [len(saved["files"]) for saved in report["saved"]] == [1, 2], "the embedding; and with it the U-Net"
    assert [saved["left_out"] for saved in report["saved"]] == [True, False]
    with pytest.raises(ValueError, match="use_step is 2 but the trained weights were saved only at the last step.*set "
                                         "use_step to 0, or train anew with steps set to 2"):
        run(replace(job, use_step=2))
    assert run(replace(job, use_step=4)).weights
    assert not run(make_job(sd15, "small", save_every=2)).report["saved"][0]["left_out"]


def test_stop_is_an_ending_that_is_kept_until_the_run_is_continued(sd15, steps_taken, after_step):
    job = make_job(sd15, "stopped", steps=6)
    after_step(3, lambda live: live.command("stop"))
    stopped = run(job)
    assert len(stopped.report["history"]) == 3 and "Step 3 of 6 is saved" in stopped.report["message"]
    assert all(Path(f).exists() for s in stopped.report["saved"] for f in s["files"])
    after_step(0, None)
    again = run(job)
    assert steps_taken == [1, 2, 3] and torch.equal(learned(again), learned(stopped))
    assert "a person stopped it there" in again.report["message"]
    finished = run(replace(job, resume="continue stopped"))
    assert steps_taken == [1, 2, 3, 4, 5, 6] and not finished.report["stopped"]
    assert "a person stopped it" not in run(job).report["message"]
    assert torch.equal(learned(finished), learned(run(make_job(sd15, "not-stopped", steps=6))))


def test_interruption_keeps_the_work(sd15, after_step):
    def interrupt(live):
        comfy.model_management.interrupt_current_processing()

    job = make_job(sd15, "interrupted", steps=6)
    after_step(2, interrupt)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(job)
    assert job_module.RunFolder("interrupted", run_key(job)).state(10)[1] == 2
    assert not comfy.model_management.in_training


def test_a_loss_that_is_no_number_stops_at_the_last_finite_step(sd15):
    class Diverging(DiffusionLoss):
        def __call__(self, got, batch, model):
            return super().__call__(got, batch, model) * (float("nan") if batch.step == 3 else 1.0)

    job = make_job(sd15, "diverging", terms=(Diverging(),))
    with pytest.raises(TrainingDiverged, match=r"Step 3: the loss diffusion is not a number any more.*Step 2 of 4 is "
                                               r"saved"):
        run(job)
    state, step, _history = job_module.RunFolder("diverging", run_key(job)).state(10)
    assert step == 2 and all(t.isfinite().all() for t in state.values())


def test_losses_are_written_for_others(sd15):
    report = run(make_job(sd15, "losses")).report
    folder = job_module.RunFolder("losses", run_key(make_job(sd15, "losses"))).path
    rows = list(csv.DictReader((folder / "losses.csv").open()))
    assert [float(row["loss"]) for row in rows] == [r["loss"] for r in report["history"]]
    assert json.loads((folder / "report.json").read_text())["history"][0]["parts"].keys() == {"diffusion"}


@pytest.mark.parametrize("part", [UNetPart(lr=1e-3), KeyValuePart(lr=1e-2), AdapterPart("LoRA", lr=1e-2),
                                  AdapterPart("LoKr", 4, lr=1e-2), AdapterPart("OFT", 4, 0.0, lr=1e-2),
                                  AdapterPart(attention_only=False, lr=1e-2)],
                         ids=["U-Net", "Key/Value", "LoRA", "LoKr", "OFT", "LoRA everywhere"])
def test_weights_work_in_the_stock_loader(sd15, part, tmp_path):
    """The model with the file's weights predicts what the trained model predicted in its session."""
    model, clip, _ = sd15
    before = sample(model, clip)
    job = make_job(sd15, f"weights-{type(part).__name__}-{getattr(part, 'algorithm', '')}", steps=3, parts=(part,))
    seen = {}
    original = job_module._Run.finish

    def finish(self, resumed):
        outcome, batch, session = original(self, resumed), self.trainer.batch(1), self.trainer.session
        cond = session.clip.encode_from_tokens(session.clip.tokenize("a dog"))
        latents = batch.latents["subject"]
        seen["inputs"] = latents.noisy[:1].clone(), latents.sigma[:1].clone(), cond.clone()
        with torch.no_grad():
            seen["trained"] = session.model.model.apply_model(
                *seen["inputs"][:2], c_crossattn=cond, transformer_options=session.transformer_options(latents.sigma))
        return outcome

    job_module._Run.finish = finish
    try:
        result = run(job)
    finally:
        job_module._Run.finish = original
    assert torch.equal(sample(model, clip), before), "the model itself must not change"
    patched, _ = comfy.sd.load_lora_for_models(model, None, result.weights, 1.0, 0.0)
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([patched])
        noisy, sigma, cond = seen["inputs"]
        loaded = patched.model.apply_model(noisy, sigma, c_crossattn=cond, transformer_options={"cond_or_uncond": [0]})
    assert not torch.equal(sample(patched, clip), before)
    torch.testing.assert_close(loaded, seen["trained"], atol=2e-3, rtol=1e-3)
    assert torch.equal(sample(model, clip), before)
