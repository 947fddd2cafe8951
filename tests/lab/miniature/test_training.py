"""Training survives interruption, follows Stable Diffusion's schedule, and its own sampler agrees with ComfyUI's."""
from __future__ import annotations

import pickle
import random

import pytest
import torch
from safetensors.torch import load_file, save_file

from miniature.checkpoint import save_checkpoint
from miniature.diffusion import FOREGROUND, TIMESTEPS, add_noise, alphas_bar, diffusion_loss, sample
from miniature.factors import sample_identity, sample_scene
from miniature.flow import flow_noised
from miniature.flow_network import is_flow, new_networks_flow
from miniature.grammar import caption, said
from miniature.latents import REFERENCES, SHARD, shard_scenes
from miniature.models import MiniatureZImage, register
from miniature.network import new_networks, new_networks_xl
from miniature.run_state import Run, cosine, write_atomically


def _steps(run: Run, module: torch.nn.Module, until: int) -> None:
    while run.step < until:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(run.step))
        run.update((module(x) - x.sum(1, keepdim=True)).square().mean(), cosine(run.step, 20, 1e-2, 3), rows=8)


def _new_run(file) -> tuple[Run, torch.nn.Module]:
    torch.manual_seed(0)
    module = torch.nn.Linear(4, 1)
    return Run(file, {"module": module}), module


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    whole, module = _new_run(tmp_path / "whole.pt")
    _steps(whole, module, 20)
    first, part = _new_run(tmp_path / "part.pt")
    _steps(first, part, 11)
    first.save()
    second, again = _new_run(tmp_path / "part.pt")
    again.weight.data.zero_()
    assert second.restore() and (second.step, second.seen) == (11, 88)
    _steps(second, again, 20)
    assert torch.equal(again.weight, module.weight)
    assert all(torch.equal(a, b) for a, b in zip(second.mean, whole.mean))


def test_swapping_the_mean_twice_changes_nothing(tmp_path):
    run, module = _new_run(tmp_path / "run.pt")
    _steps(run, module, 10)
    weight, mean = module.weight.detach().clone(), run.mean[0].clone()
    run.swap_mean()
    assert torch.equal(module.weight, mean) and not torch.equal(module.weight, weight)
    run.swap_mean()
    assert torch.equal(module.weight, weight)


def test_a_failed_save_leaves_the_old_state(tmp_path):
    file = tmp_path / "state.pt"
    write_atomically(file, {"step": 1})
    with pytest.raises((AttributeError, pickle.PicklingError), match="pickle"):
        write_atomically(file, {"step": lambda: 2})
    assert torch.load(file, weights_only=True) == {"step": 1}


def test_a_new_run_adopts_committed_weights_and_their_position(tmp_path):
    run, module = _new_run(tmp_path / "run.pt")
    save_file({"weight": torch.ones(1, 4), "bias": torch.ones(1)}, tmp_path / "w.safetensors", metadata={"steps": "12"})
    module.load_state_dict(load_file(tmp_path / "w.safetensors"))
    run.adopt(tmp_path / "w.safetensors")
    assert run.step == 12 and torch.equal(run.mean[0], torch.ones(1, 4))


def test_a_loss_that_is_not_finite_stops(tmp_path):
    run, module = _new_run(tmp_path / "run.pt")
    with pytest.raises(FloatingPointError, match="step 0"):
        run.update(module(torch.full((1, 4), float("nan"))).mean(), 1e-3)


def test_shards_are_reproducible_and_pair_subjects():
    targets, references = shard_scenes(0)
    again, _ = shard_scenes(0)
    assert (len(targets), len(references)) == (SHARD, REFERENCES) and targets == again
    assert not any(scene.held_out for scene in targets + references)
    assert all(a.identity == b.identity and a.seed != b.seed for a, b in zip(targets, references))
    same = sum(a.pose == b.pose for a, b in zip(targets, references)) / REFERENCES
    assert 0.7 < same < 0.95


FAMILIES = {"SD1.x": new_networks, "SDXL": new_networks_xl, "Z-Image": new_networks_flow}
noised_by_schedule = pytest.mark.parametrize("networks_and_checkpoint", ["SD1.x", "SDXL"], indirect=True)


@pytest.fixture(scope="module", params=FAMILIES)
def networks_and_checkpoint(base, request):
    """(networks, loaded checkpoint) of each family, every weight away from its start."""
    import nodes

    from miniature.autoencoder import initialise, new_autoencoder

    register()
    networks, autoencoder = FAMILIES[request.param](5), new_autoencoder()
    initialise(autoencoder)
    with torch.no_grad():
        for parameter in networks.parameters():
            parameter.copy_((parameter + 0.02 * torch.randn_like(parameter)).half().float())
    file = base / "models" / "checkpoints" / "miniature_sampling.safetensors"
    save_checkpoint(networks, autoencoder, 1.0, file, {})
    with torch.inference_mode():
        loaded = nodes.CheckpointLoaderSimple().load_checkpoint(file.name)
    yield networks.eval().requires_grad_(False), loaded
    file.unlink()


def test_conditioning_is_comfyuis(networks_and_checkpoint):
    networks, (model, clip, _) = networks_and_checkpoint
    prompt = "a drawing of a striped fish wearing a crown under the ocean"
    with torch.inference_mode():
        words, settings = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))[0]
        own_words, own_vector = networks["text"].condition(networks["text"].tokens([prompt]))
        vector = None if is_flow(networks) else model.model.encode_adm(
            pooled_output=settings["pooled_output"], width=128, height=128, device="cpu")
    torch.testing.assert_close(words, own_words, atol=2e-3, rtol=2e-3)
    if own_vector is None:
        assert vector is None
    else:
        torch.testing.assert_close(vector.float(), own_vector, atol=2e-3, rtol=2e-3)


@noised_by_schedule
def test_schedule_is_comfyuis(networks_and_checkpoint):
    _, (model, _, _) = networks_and_checkpoint
    share = alphas_bar()
    sigmas = model.model.model_sampling.sigmas.float()
    torch.testing.assert_close(((1 - share) / share).sqrt(), sigmas, rtol=1e-4, atol=1e-5)
    latents, noise, t = torch.randn(3, 16, 16, 16), torch.randn(3, 16, 16, 16), torch.tensor([0, 400, 999])
    noisy = add_noise(latents, noise, t)
    sigma = model.model.model_sampling.sigmas[t].view(-1, 1, 1, 1)
    torch.testing.assert_close(noisy * (1 + sigma**2).sqrt(), latents + sigma * noise, rtol=1e-3, atol=1e-3)


def test_flow_of_the_transformer_is_comfyuis(base):
    """Noise and velocity in Z-Image's terms: the model is asked for noise - latents at the level that it is told."""
    levels, latents, noise = torch.tensor([0.1, 0.7]), torch.randn(2, 16, 16, 16), torch.randn(2, 16, 16, 16)
    sampling = model_sampling()
    noisy = flow_noised(latents, noise, levels)
    for row, level in enumerate(levels):
        theirs = sampling.noise_scaling(level.view(1, 1, 1, 1), noise[row:row + 1], latents[row:row + 1])
        torch.testing.assert_close(noisy[row:row + 1], theirs)
    clean = sampling.calculate_denoised(levels, noise - latents, noisy)
    torch.testing.assert_close(clean, latents, atol=1e-5, rtol=1e-5)
    assert sampling.timestep(levels).tolist() == pytest.approx(levels.tolist())


def model_sampling():
    """Of the miniature Z-Image's class."""
    from comfy.model_base import ModelType
    from comfy.model_base import model_sampling as sampling_of

    return sampling_of(MiniatureZImage({}), ModelType.FLOW)


def test_own_sampler_agrees_with_comfyuis_euler(networks_and_checkpoint):
    """Deterministic DDIM is Euler's method in sigma; same noise, guidance and time steps must give the same latent."""
    import comfy.sample
    import comfy.samplers

    networks, (model, clip, _) = networks_and_checkpoint
    prompt, steps = "a photo of a red dog in the snow", 4
    own = sample(networks, [prompt], seed=2, guidance=3.0, steps=steps)
    times = torch.linspace(TIMESTEPS - 1, 0, steps + 1).round().long()
    sigmas = torch.linspace(1, 0, steps + 1) if is_flow(networks) else model.model.model_sampling.sigmas[times].float()
    noise = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (prompt, ""))
        theirs = comfy.sample.sample_custom(
            model, noise, 3.0, comfy.samplers.sampler_object("euler"), sigmas, positive, negative,
            torch.zeros(1, 16, 16, 16), disable_pbar=True)
    scale = 1.0 if is_flow(networks) else alphas_bar()[0].sqrt()
    torch.testing.assert_close(own / scale, theirs.clone(), rtol=2e-2, atol=2e-2)


def test_tokens_joined_from_words_are_the_real_tokenizers(networks_and_checkpoint):
    networks, (_, clip, _) = networks_and_checkpoint
    text, rng = networks["text"], random.Random(8)
    ids, encoder = getattr(text, "l", text).ids, "qwen3_4b" if is_flow(networks) else "l"
    for sentence in ["", *(caption(sample_scene(rng), rng) for _ in range(100))]:
        places = text.tokens([sentence])[0]
        assert ids[places].tolist() == [id for id, _ in clip.tokenize(sentence)[encoder][0]]


def test_oracle_labels_agree_with_what_captions_say():
    from miniature.oracle import CHOICES, COLOR_NAMES, Judgement, truth

    rng = random.Random(9)
    for _ in range(200):
        scene = sample_scene(rng, "all", sample_identity(rng, basic=True))
        labels = truth([scene])
        seen = {name: options[int(labels[name][0])] for name, options in CHOICES.items()}
        colors = frozenset(name for name, flag in zip(COLOR_NAMES, labels["colors"][0].tolist()) if flag == 1)
        perfect = Judgement(seen, colors, torch.zeros(1), torch.zeros(1))
        verdict = perfect.agrees(said(caption(scene, rng)))
        assert verdict and all(verdict.values()), (scene, verdict)


@pytest.mark.parametrize("family", ["SDXL", "Z-Image"])  # whose target, velocity, depends on the latents
def test_a_cell_that_a_thing_covers_counts_more(family):
    networks, seed = FAMILIES[family](5), 4
    tokens = networks["text"].tokens(["a dog in the snow"] * 2)
    latents, none = torch.randn(2, 16, 16, 16), torch.zeros(2, 1, 16, 16)
    losses = {}
    for name, foreground in (("nothing", none), ("all", none + 1), ("a corner", none.clone())):
        if name == "a corner":
            foreground[..., :4, :4] = 1
        far = latents.clone()
        far[..., :4, :4] += 100.0
        for where, shown in (("near", latents), ("far", far)):
            torch.manual_seed(seed)
            with torch.no_grad():
                losses[name, where] = float(diffusion_loss(networks, shown, tokens, None, foreground))
    assert losses["nothing", "far"] == pytest.approx(losses["all", "far"], rel=1e-5)
    weight = (1 + FOREGROUND) / (1 + FOREGROUND / 16)
    assert losses["a corner", "far"] / losses["nothing", "far"] == pytest.approx(weight, rel=0.15)
