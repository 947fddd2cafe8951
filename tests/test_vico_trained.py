"""What is left of a training of image blocks: previews, files that draw as the model drew, steps to choose from."""
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import folder_paths
import nodes
import pytest
import torch
from torch import Tensor

from personalize.nodes.families.find import unet_of
from personalize.nodes.papers.vico.apply import with_references
from personalize.nodes.papers.vico.blocks import ImageBlocks, layers_at
from personalize.nodes.papers.vico.nodes_apply import MASKS as MASK_NAMES
from personalize.nodes.papers.vico.nodes_apply import PersonalizeApplyViCo, PersonalizeLoadViCo
from personalize.nodes.papers.vico.nodes_train import PersonalizeTrainViCo
from personalize.nodes.papers.vico.parts import ImageAttentionPart
from personalize.nodes.papers.vico.references import Reference, Use
from personalize.nodes.recording.record import Record
from personalize.nodes.text.apply import clip_with_vectors
from personalize.nodes.text.nodes_concept import PersonalizeLoadConcept, PersonalizeSaveConcept
from personalize.nodes.text.nodes_prompts import PersonalizeEncodeWithSpans
from personalize.nodes.text.tokens import prompt_tokens
from personalize.nodes.training import job as job_module
from personalize.nodes.training.batch import Row
from personalize.nodes.training.nodes_parts import PersonalizeTrainAdapter
from personalize.nodes.training.parts.embedding import EmbeddingPart
from personalize.nodes.training.parts.weights import AdapterPart
from personalize.nodes.training.plan import Settings
from support.sampling import difference, encoded, sample
from support.trainings import make_job, run, subject, train
from support.vico_training import RECIPE, WORD, close, method, with_masks

pytestmark = pytest.mark.usefixtures("execute")  # the server object that runs report to


def test_previews_read_a_picture_of_the_first_subject(sd15):
    """As Apply ViCo draws with the file that would be saved now."""
    drawn = []

    def each_step(trainer, record):
        vectors, part = trainer.parts
        clip = clip_with_vectors(trainer.session.clip, vectors.learned_vectors())
        options = prompt_tokens(clip, f"a photo of a {WORD}").layout.options()
        positive, negative = encoded(clip, f"a photo of a {WORD}", **options), encoded(clip, "")
        preview = sample(trainer.session.model, positive, negative, size=(8, 8))
        latents = trainer.latents.noised((Row(0, 0, 0, ""),), trainer.session.noise, 0, 1, "reference", "cpu").clean
        blocks, = part.files()
        drawn.append((preview, positive, negative, latents, {name: t.clone() for name, t in blocks.tensors.items()}))
        assert json.loads(blocks.metadata["words"]) == [WORD, "<my-toy>"]
        return True

    train(sd15, Settings(steps=3, batch_size=4), each_step=each_step, **method(parts=(
        EmbeddingPart(), ImageAttentionPart(1e-2))))
    preview, positive, negative, latents, tensors = drawn[-1]
    blocks = ImageBlocks(sd15.model, layers_at(unet_of(sd15.model).layers, "decoder"))
    for name, parameter in blocks.named_tensors():
        parameter.data.copy_(tensors[name])
    reading = with_references(sd15.model, blocks, (), [Reference(latents, WORD)], Use("paper"), Record("A"))
    close(preview, sample(reading, positive, negative, size=(8, 8)))
    assert not torch.equal(preview, sample(sd15.model, positive, negative, size=(8, 8)))


@pytest.mark.parametrize("object_mask, variant, adapter", [
    ("Eq. 5", "paper", True), ("as released", "released", False), ("none", "none", True),
    ("given mask", "paper", False)])
def test_files_draw_as_the_trained_model_drew(sd15, monkeypatch, object_mask, variant, adapter):
    """Stock LoRA loader, Load Concept, Load ViCo and Apply ViCo as trained, against the model inside its training."""
    drawn, prompt = [], f"a photo of a {WORD}"

    def after_step(training, trainer, record):
        going_on = original(training, trainer, record)
        if record["step"] == record["total"]:
            for group in trainer.optimizer.param_groups:
                for p in group["params"]:
                    p.data = p.data.half().float()  # as in the files
            clip = clip_with_vectors(trainer.session.clip, trainer.vectors())
            positive = encoded(clip, prompt, **prompt_tokens(clip, prompt).layout.options())
            drawn.append(sample(trainer.session.model, positive, encoded(clip, ""), size=(8, 8)))
        return going_on

    original = job_module._Run._after_step
    monkeypatch.setattr(job_module._Run, "_after_step", after_step)
    oft = PersonalizeTrainAdapter.execute("OFT", 8, 0.0, 1e-2, True).args[0] if adapter else ()
    parts = PersonalizeTrainViCo.execute(1e-2, 5e-3, "decoder", object_mask, oft).args[0]
    job = make_job(sd15, f"vico-files-{variant}-{adapter}", steps=3, parts=parts, terms=method()["terms"],
                   recipe=RECIPE, subjects=(with_masks(subject()),), settings=Settings(steps=3, batch_size=4))
    saved, = run(job).report["saved"]
    concept = PersonalizeLoadConcept.execute(saved["embeddings"][0], "", "").args[0]
    vico, model = PersonalizeLoadViCo.execute("none", concept).args[0], sd15.model
    assert vico.variant == variant
    if adapter:
        loras = Path(folder_paths.get_folder_paths("loras")[0])
        model, = nodes.LoraLoaderModelOnly().load_lora_model_only(
            model, str(Path(saved["files"][-1]).relative_to(loras)), 1.0)
    pixels = job.subjects[0].pictures[0].variants

    def draw(mask: str, model=model) -> Tensor:
        with torch.inference_mode():
            reading = PersonalizeApplyViCo.execute(model, vico, sd15.vae, pixels, "", 1.0, 0.0, 1.0, mask, "both", 1, 0,
                                        "squash").args[0]
            positive = PersonalizeEncodeWithSpans.execute(sd15.clip, prompt, "", concept).args[0]
        return sample(reading, positive, encoded(sd15.clip, ""), size=(8, 8))

    assert difference(draw("as trained"), drawn[0]) < 1e-4
    others = [mask for mask, name in MASK_NAMES.items() if name != variant]
    assert len(others) == 2 and all(difference(draw(mask), drawn[0]) > 0.1 for mask in others)
    assert not adapter or difference(draw("as trained", sd15.model), drawn[0]) > 0.1


def test_every_saved_step_is_kept_and_found_by_its_concept(sd15):
    oft = AdapterPart("OFT", rank=8, alpha=0.0, lr=1e-3)
    job = make_job(sd15, "vico-steps", parts=(*method()["parts"], oft), save_every=2, recipe=RECIPE,
                   preview_every=4, terms=method()["terms"])
    before = encoded(sd15.clip, "a photo of a dog"), encoded(sd15.clip, "")
    picture = sample(sd15.model, *before)
    last = run(job)
    after = encoded(sd15.clip, "a photo of a dog"), encoded(sd15.clip, "")
    assert all(torch.equal(new[0][0], old[0][0]) for new, old in zip(after, before)), "the text encoder is as it was"
    assert torch.equal(sample(sd15.model, *before), picture), "the U-Net is as it was"
    saved = last.report["saved"]
    assert [Path(file).name for each in saved for file in each["part_files"]] == [
        "image-blocks-000002.safetensors", "image-blocks-000004.safetensors"]
    assert [preview["step"] for preview in last.report["previews"]] == [0, 4]
    assert last.weights and not any("image_cross_attention" in name for name in last.weights)
    earlier = run(replace(job, use_step=2))
    found = {step: PersonalizeLoadViCo.execute("none", outcome.concepts).args[0]
             for step, outcome in ((2, earlier), (4, last))}
    for step, vico in found.items():
        assert vico.source == f"image-blocks-{step:06d}.safetensors"
        assert (vico.variant, vico.words, vico.size, vico.text_width) == ("paper", ("<my-dog>",), 64, 32)
    assert not torch.equal(found[2].blocks["output", 4]["ff.net.2.bias"], found[4].blocks["output", 4]["ff.net.2.bias"])
    for step, outcome in ((2, earlier), (4, last)):
        saving = PersonalizeSaveConcept.execute(outcome.concepts, f"vico-chosen-{step}")
        for name in (saving.args[0][0], next(each["embeddings"][0] for each in saved if each["step"] == step)):
            concept = PersonalizeLoadConcept.execute(name, "", "").args[0]
            vico = PersonalizeLoadViCo.execute("none", concept).args[0]
            assert vico.source == found[step].source and concept[0].placeholder == WORD
            assert torch.equal(vico.blocks["output", 4]["ff.net.2.bias"],
                               found[step].blocks["output", 4]["ff.net.2.bias"])
    Path(saved[0]["part_files"][0]).unlink()
    with pytest.raises(ValueError, match="use_step is 2 but its file .*image-blocks-000002.* has been deleted"):
        run(replace(job, use_step=2))
    with pytest.raises(ValueError, match="There is no vico-steps-.*image-blocks-000002.safetensors in .*vico"):
        PersonalizeLoadViCo.execute("none", earlier.concepts)


def test_concept_of_another_training_has_no_blocks():
    with pytest.raises(ValueError, match="Concept <my-dog> does not say which training it comes from"):
        PersonalizeLoadViCo.execute("none", (subject().concept,))
    with pytest.raises(ValueError, match="file is none and no concept is connected"):
        PersonalizeLoadViCo.execute("none")
