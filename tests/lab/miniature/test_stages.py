"""The three stages run end to end, stop and continue: a few steps on a few pictures, nothing is learnt here."""
from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from miniature import (
    autoencoder,
    diffusion_training,
    language,
    latents,
    oracle_training,
    picture_words,
    renderer,
)
from miniature.deadline import Deadline
from miniature.grammar import identity_words
from miniature.models import register
from miniature.network import new_networks
from miniature.oracle import load_oracle
from miniature.picture_words import teach_words

CPU = torch.device("cpu")


def _metadata(file) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return opened.metadata()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run folder whose autoencoder has made two steps."""
    small = pytest.MonkeyPatch()
    sizes = {
        autoencoder: {"POOL": 16, "HELD_OUT": 4},
        oracle_training: {"POOL": 288, "CHECKED": 8, "TRIPLES": 2, "KINDS": 2, "PAIRS": 2, "LOOKED_AT": 8,
                          "LOOKS": 3},
        latents: {"SHARD": 16, "REFERENCES": 8},
        diffusion_training: {"CHECKED": 2},
        language: {"CAPTIONS": 60, "STEPS": 3},
    }
    for module, values in sizes.items():
        for name, value in values.items():
            small.setattr(module, name, value)
    folder = tmp_path_factory.mktemp("run")
    autoencoder.train_autoencoder(folder, Deadline(5), CPU, steps=2)
    yield folder
    small.undo()


def test_autoencoder_continues_and_says_what_it_reached(folder):
    before = load_file(folder / "autoencoder.safetensors")
    assert _metadata(folder / "autoencoder.safetensors")["steps"] == "2"
    passed = autoencoder.train_autoencoder(folder, Deadline(5), CPU, steps=3)
    figures = _metadata(folder / "autoencoder.safetensors")
    assert figures["steps"] == "3" and passed == (float(figures["held_out_db"]) >= autoencoder.GATE_DB)
    after = load_file(folder / "autoencoder.safetensors")
    assert before.keys() == after.keys() and any(not torch.equal(before[k], after[k]) for k in before)


def test_latents_of_pictures_drawn_otherwise_are_not_taken(folder, tmp_path, monkeypatch):
    encoder = folder / "autoencoder.safetensors"
    made, again = (latents.make_shards(tmp_path, encoder, 1, 0, CPU, Deadline(5)) for _ in range(2))
    monkeypatch.setattr(renderer, "STRIPE", renderer.STRIPE + 4)
    other = latents.make_shards(tmp_path, encoder, 1, 0, CPU, Deadline(5))
    assert made == again != other and all(file.is_file() for file in made + other)


def test_the_decoder_can_be_trained_alone_so_that_latents_stay_good(folder, tmp_path):
    (tmp_path / "autoencoder.pt").write_bytes((folder / "autoencoder.pt").read_bytes())
    before = load_file(folder / "autoencoder.safetensors")
    autoencoder.train_autoencoder(tmp_path, Deadline(5), CPU, steps=5, decoder_only=True)
    after = load_file(tmp_path / "autoencoder.safetensors")
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed and all(key.startswith("taesd_decoder.") for key in changed)


def test_a_deadline_in_the_past_changes_nothing_and_passes_no_gate(folder, capsys):
    state = torch.load(folder / "autoencoder.pt", weights_only=True)
    assert autoencoder.train_autoencoder(folder, Deadline(0), CPU, steps=10) is False
    again = torch.load(folder / "autoencoder.pt", weights_only=True)
    assert again["step"] == state["step"]
    assert all(torch.equal(a, b) for a, b in zip(state["mean"], again["mean"]))


@pytest.mark.slow
def test_oracle_is_trained_validated_and_loaded(folder):
    passed = oracle_training.train_oracle(folder, Deadline(5), CPU, folder / "autoencoder.safetensors", steps=2)
    figures = _metadata(folder / "oracle.safetensors")
    assert passed is False and {"renders kind", "reconstructions mask", "identity"} <= figures.keys()
    oracle = load_oracle(folder / "oracle.safetensors")
    assert all(look.correct[-1].weight.any() for look in oracle.second_looks.values())
    judged = oracle.judge(torch.rand(2, 3, 128, 128))
    assert judged[0].mask.shape == (128, 128) and judged[0].identity.norm() == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["miniature", "miniature_xl", "miniature_flow"])
def test_diffusion_writes_a_checkpoint_that_comfyui_loads(folder, base, name):
    import nodes

    register()

    def train(pictures: int) -> bool:
        return diffusion_training.train_diffusion(
            folder, Deadline(5), CPU, folder / "autoencoder.safetensors", folder / "none.safetensors", name=name,
                                                  batch=4,
            shards=2, pictures=pictures)

    assert train(4) is False
    assert train(8) is False
    file = folder / f"{name}.safetensors"
    assert _metadata(file)["pictures"] == "8" and file.with_suffix(".png").is_file()
    assert len(list((folder / "latents").iterdir())) == 2 * 2  # latents, and where things are in them
    link = base / "models" / "checkpoints" / f"{name}_stage.safetensors"
    link.symlink_to(file)
    with torch.inference_mode():
        _model, _clip, vae = nodes.CheckpointLoaderSimple().load_checkpoint(link.name)[:3]
        assert vae.decode(torch.zeros(1, 16, 16, 16)).shape == (1, 128, 128, 3)
    link.unlink()


@pytest.mark.slow
def test_a_text_encoder_learns_beside_its_unet_until_it_is_frozen(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(diffusion_training, "TEXT_PICTURES", 8)
    encoders, unets = [], []
    for pictures in (4, 8, 12):
        diffusion_training.train_diffusion(tmp_path, Deadline(5), CPU, folder / "autoencoder.safetensors",
                                           folder / "none", batch=4, shards=1, pictures=pictures)
        modules = torch.load(tmp_path / "miniature.pt", weights_only=True)["modules"]
        encoders.append(modules["text"]["rows"])
        unets.append(modules["unet"]["out.2.weight"])
    assert not torch.equal(encoders[0], encoders[1]) and torch.equal(encoders[1], encoders[2])
    assert not torch.equal(unets[1], unets[2])


@pytest.mark.slow
def test_a_twin_without_weights_begins_from_the_miniature_beside_them(folder, tmp_path):
    miniature = autoencoder.WEIGHTS.with_name("miniature.safetensors")
    (tmp_path / miniature.name).symlink_to(miniature)
    run = folder / "twin"
    diffusion_training.train_diffusion(run, Deadline(5), CPU, folder / "autoencoder.safetensors", folder / "none",
                                       batch=4,
                                       start=tmp_path / "miniature_xl.safetensors", name="miniature_xl", shards=1,
                                       pictures=4)
    trained, given = load_file(run / "miniature_xl.safetensors"), load_file(miniature)
    for encoder in ("clip_l", "clip_g"):
        layer = "transformer.text_model.encoder.layers.0.mlp.fc1.weight"
        torch.testing.assert_close(trained[f"cond_stage_model.{encoder}.{layer}"],
                                   given[f"cond_stage_model.clip_l.{layer}"],
                                   atol=1e-4, rtol=0)


@pytest.mark.slow
def test_the_picture_encoder_learns_to_say_what_a_caption_says(folder, monkeypatch):
    """Nearer to each subject's own words than to the mean of all: the error falls below their variance."""
    monkeypatch.setattr(picture_words, "ROWS", 2 * latents.REFERENCES)  # in a step as many as there are
    networks = new_networks(1)
    files = latents.make_shards(folder, folder / "autoencoder.safetensors", 2, 0, CPU, Deadline(5))
    corpus = latents.load_corpus(files, networks["text"], CPU, print)
    teach_words(networks, corpus, 150, Deadline(5))
    errors, variance = [], []
    subjects = [scene.identity for number in range(2) for scene in latents.shard_scenes(number)[1]]
    with torch.no_grad():
        said = networks["picture"](corpus.references.float() / 255)
        words = {row: networks["text"](networks["text"].tokens([f"a {identity_words(identity)} {identity.kind}"]))[0,
                                                                                                                   1:9]
                 for row, identity in enumerate(subjects) if identity.named}
        mean = torch.stack(list(words.values())).mean(0)
        for row, wanted in words.items():
            errors.append((said[row] - wanted).square().mean())
            variance.append((mean - wanted).square().mean())
    assert len(words) > 6 and sum(errors) < 0.5 * sum(variance)
