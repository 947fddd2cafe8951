"""Several devices for one picture, as core's MultiGPU nodes prepare a MODEL: two names of the CPU stand for them."""
from __future__ import annotations

import pytest
import torch

from personalize.nodes.attention.words import Words
from personalize.nodes.families.find import unet_of
from personalize.nodes.recording.record import Record
from personalize.nodes.recording.sampling_recorder import recording_model
from personalize.nodes.text.nodes_prompts import PersonalizeEncodeWithSpans
from personalize.nodes.training.parts.weights import AdapterPart
from support.patches import PATCHES, patch_on
from support.sampling import difference, encoded, sample
from support.trainings import make_job, run

pytestmark = pytest.mark.newer  # than 0.16.3, which has no such nodes

SECOND = torch.device("cpu", 0)  # for core another device than torch.device("cpu")
REFUSED = ("Self-Attention Swap",)


def shared(model):
    """What MultiGPU CFG Split gives where these are two GPUs."""
    import comfy.multigpu

    prepared = model.clone()
    copy = prepared.deepclone_multigpu(new_load_device=SECOND)
    copy.is_multigpu_base_clone = True
    prepared.set_additional_models("multigpu", [copy])
    prepared.match_multigpu_clones()
    comfy.multigpu.GPUOptionsGroup().register(prepared)
    return prepared


def devices_of_calls(model, devices):
    """A clone that notes which device each run of the U-Net was given to."""
    def note(executor, x, timesteps, context, y, control, options, *args, **kwargs):
        devices.append(options.get("multigpu_thread_device"))
        return executor(x, timesteps, context, y, control, options, *args, **kwargs)

    clone = model.clone()
    clone.add_wrapper_with_key("diffusion_model", "test", note)
    return clone


@pytest.mark.parametrize("name", [name for name in PATCHES if name not in REFUSED])
def test_the_picture_is_that_of_one_device(load_checkpoint, tmp_path, name):
    """Whichever node comes first, the patch or MultiGPU."""
    torch.manual_seed(0)
    checkpoint, devices = load_checkpoint("sd15"), []
    patched = patch_on(name, checkpoint, tmp_path)
    alone = sample(patched.apply(checkpoint.model), patched.positive, patched.negative)
    kept = patched.record and patched.record.current
    for model in (shared(patched.apply(checkpoint.model)), patched.apply(shared(checkpoint.model))):
        got = sample(devices_of_calls(model, devices), patched.positive, patched.negative)
        assert difference(got, alone) < 1e-4
        assert set(devices) == {torch.device("cpu"), SECOND}
        devices.clear()
        if kept:
            again = patched.record.current
            assert again is not kept and again.words == kept.words and again.layers == kept.layers
            for word in kept.words:
                assert torch.allclose(again.mean_map(word), kept.mean_map(word), atol=1e-5)


def test_attention_is_recorded_on_every_device(load_checkpoint, tmp_path):
    """Two positive conditionings go to two devices; each has maps of its own word."""
    checkpoint, record = load_checkpoint("sd15"), Record("Record Attention")
    with torch.inference_mode():
        both = [part for text, word in (("a dog", "dog"), ("a cat", "cat"))
                for part in PersonalizeEncodeWithSpans.execute(checkpoint.clip, text, word).args[0]]
    model = recording_model(shared(checkpoint.model), record, unet_of(checkpoint.model).layers, Words(("dog", "cat")))
    sample(model, both, encoded(checkpoint.clip, ""), cfg=1.0)
    assert set(record.current.words) == {"dog", "cat"}
    assert all(len(record.current.map("dog", layer)) for layer in unet_of(checkpoint.model).layers)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_shared_says_so(load_checkpoint, tmp_path, name):
    checkpoint = load_checkpoint("sd15")
    patched = patch_on(name, checkpoint, tmp_path)
    with pytest.raises(ValueError, match=f"^{name} cannot share a picture among several GPUs; take the MultiGPU node"):
        sample(shared(patched.apply(checkpoint.model)), patched.positive, patched.negative)


def test_training_and_its_previews_run_on_one_device(load_checkpoint):
    checkpoint, devices = load_checkpoint("sd15"), []
    prepared = checkpoint._replace(model=devices_of_calls(shared(checkpoint.model), devices))
    job = dict(steps=2, parts=(AdapterPart(lr=1e-2),))
    trained = run(make_job(prepared, "shared", preview_every=2, **job))
    assert set(devices) == {None}
    alone = run(make_job(checkpoint, "alone", **job))
    assert all(torch.equal(trained.weights[name], weight) for name, weight in alone.weights.items())
    assert prepared.model.get_additional_models_with_key("multigpu")
