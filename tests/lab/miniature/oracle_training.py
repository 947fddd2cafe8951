"""Trains and validates the oracle: on renders, on their reconstructions, with noise and blur."""
from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from .autoencoder import load_autoencoder, reconstruct
from .comfyui import fast_half
from .data import draw_all, masks_tensor, pictures_tensor, scenes
from .deadline import Deadline
from .factors import CLASSES, POSES, Identity, Scene, sample_identity, sample_scene, with_factors
from .oracle import CHOICES, READ_AT_ONCE, SECOND_LOOKS, Oracle, load_oracle, truth
from .renderer import draw
from .run_state import Run, cosine
from .synthesis import SecondLook

STEPS = 4000
KINDS, PAIRS = 4, 6           # a batch: four classes, six pairs of pictures of one identity each
PEAK_RATE = 2e-3
POOL = 2400                   # pairs of pictures kept drawn
LOOKED_AT, LOOKS = 1920, 1500  # training scenes and steps of the second looks
NO_GUESS, NO_FIT, BADLY = 0.5, 0.2, 0.6  # their rows without a guess, and whose options all fit at most so well
CHECKED, TRIPLES = 480, 150   # held-out scenes and identity comparisons that the gate reads
GATE, MASK_GATE = 0.98, 0.90
FACTORS = (*CHOICES, "colors")


class PairPool:
    """Two pictures of one identity, many times over; a part of them through the autoencoder."""

    def __init__(self, size: int, seed: int, autoencoder: torch.nn.ModuleDict | None, on: torch.device):
        self.rng, self.size, self.autoencoder, self.on = random.Random(seed), size, autoencoder, on
        self.pairs: dict[str, list[tuple[list[Scene], torch.Tensor, torch.Tensor]]] = {kind: [] for kind in CLASSES}

    def refresh(self, count: int) -> None:
        for _ in range(count):
            kind = self.rng.choice(CLASSES)
            pair, kept = self._draw(kind), self.pairs[kind]
            if len(kept) < self.size // len(CLASSES):
                kept.append(pair)
            else:
                kept[self.rng.randrange(len(kept))] = pair

    def _draw(self, kind: str) -> tuple[list[Scene], torch.Tensor, torch.Tensor]:
        identity = sample_identity(self.rng, kind)
        while identity.held_out:
            identity = sample_identity(self.rng, kind)
        both = [self._scene(identity), self._scene(identity)]
        drawings = draw_all(both)
        pictures = pictures_tensor(drawings)
        if self.autoencoder is not None and self.rng.random() < 0.4:
            with torch.autocast(self.on.type, torch.bfloat16, enabled=fast_half(self.on)):
                pictures = reconstruct(self.autoencoder, pictures.to(self.on)).float().cpu()
        return both, (pictures * 255).round().byte(), (masks_tensor(drawings) * 255).round().byte()

    def _scene(self, identity: Identity) -> Scene:
        """A training scene with all poses equally often."""
        while True:
            scene = with_factors(sample_scene(self.rng, identity=identity), pose=self.rng.choice(POSES))
            if not scene.held_out:
                return scene

    def take(self) -> tuple[list[Scene], torch.Tensor, torch.Tensor]:
        """KINDS × PAIRS pairs: scenes, pictures, masks; partners are neighbours."""
        chosen = [pair for kind in self.rng.sample([k for k in CLASSES if len(self.pairs[k]) >= PAIRS], KINDS)
                  for pair in self.rng.sample(self.pairs[kind], PAIRS)]
        scenes_ = [scene for pair in chosen for scene in pair[0]]
        return scenes_, torch.cat([p[1] for p in chosen]).float() / 255, torch.cat([p[2] for p in chosen]).float() / 255


def spoil(pictures: torch.Tensor) -> torch.Tensor:
    """Noise, blur and a little brightness, each on a random part of the rows: what generated pictures may have."""
    rows = len(pictures)
    blurred = F.avg_pool2d(pictures, 3, 1, 1, count_include_pad=False)
    pictures = torch.where(torch.rand(rows, 1, 1, 1) < 0.3, blurred, pictures)
    strength = 0.07 * torch.rand(rows, 1, 1, 1) * (torch.rand(rows, 1, 1, 1) < 0.5)
    gain = 1 + 0.1 * (torch.rand(rows, 1, 1, 1) - 0.5)
    return (gain * pictures + strength * torch.randn_like(pictures)).clamp(0, 1)


def oracle_loss(oracle: Oracle, scenes_: list[Scene], pictures: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each factor, binary for colours and mask, and InfoNCE between the pictures of one identity.

    Half of the subjects are cut out by their true masks, the others by the oracle's own.
    """
    labels = {name: values.to(pictures.device) for name, values in truth(scenes_).items()}
    whole, mask = oracle.scene(pictures)
    honest = torch.rand(len(pictures), 1, 1, 1, device=pictures.device) < 0.5
    seen = oracle.read(pictures, whole, mask, torch.where(honest, masks > 0.5, mask > 0).float())
    loss = sum(F.cross_entropy(seen[name].float(), labels[name]) for name in CHOICES)
    loss = loss + 2 * F.cross_entropy(seen["pattern"].float(), labels["pattern"])  # the hardest
    known = labels["colors"] >= 0
    wrong = F.binary_cross_entropy_with_logits(seen["colors"].float()[known], labels["colors"][known], reduction="sum")
    loss = loss + 3 * wrong / known.sum().clamp(min=1)
    loss = loss + 2 * F.binary_cross_entropy_with_logits(seen["mask"].float(), masks)
    likeness = seen["identity"][0::2] @ seen["identity"][1::2].T / 0.1
    partner = torch.arange(len(likeness), device=likeness.device)
    return loss + 0.5 * (F.cross_entropy(likeness, partner) + F.cross_entropy(likeness.T, partner))


def fit_second_looks(oracle: Oracle, autoencoder: torch.nn.ModuleDict | None, count: int) -> None:
    """The networks stay as they are; what they guess of ``count`` training scenes and of their reconstructions, spoilt
    as in their own training, teaches the second looks when to follow the evidence."""
    scenes_ = scenes(count, "train", 3)
    views = [pictures_tensor(draw_all(scenes_))]
    if autoencoder is not None:
        views.append(reconstruct(autoencoder, views[0].to(oracle.device)).cpu())
    parts = [oracle.see(spoil(part)) for view in views for part in view.split(READ_AT_ONCE)]
    labels = truth(scenes_)
    for name, evidence in SECOND_LOOKS.items():
        guess, found = (torch.cat([part[key] for part in parts]) for key in (name, evidence))
        _fit(oracle.second_looks[name], guess.to(oracle.device), found.to(oracle.device),
             labels[name].repeat(len(views)).to(oracle.device))


def _fit(look: SecondLook, guess: torch.Tensor, evidence: torch.Tensor, labels: torch.Tensor) -> None:
    """Half of the rows have no guess: of scenes it was trained on it is right too often to leave anything to learn. In
    others every option fits badly and the wrong one best, as on pictures that no renderer drew: there the guess is
    all."""
    options = guess.shape[1]
    optimizer = torch.optim.AdamW(look.requires_grad_(True).parameters(), weight_decay=0.05)
    for step in range(LOOKS):
        rows = torch.randint(len(labels), (256,), device=labels.device)
        chance = torch.rand(len(rows), 1, device=labels.device)
        fits, rest = evidence[rows].split([options, evidence.shape[1] - options], 1)
        misfits = BADLY * torch.rand_like(chance) * fits.gather(1, torch.rand_like(fits).argsort(1))
        found = torch.cat([torch.where(chance < NO_FIT, misfits, fits), rest], 1)
        for group in optimizer.param_groups:
            group["lr"] = cosine(step, LOOKS, 1e-2, 50)
        optimizer.zero_grad()
        F.cross_entropy(look((chance < 1 - NO_GUESS) * guess[rows], found), labels[rows]).backward()
        optimizer.step()


@torch.no_grad()
def validate(oracle: Oracle, scenes_: list[Scene], pictures: torch.Tensor, masks: torch.Tensor) -> dict[str, float]:
    """Accuracy per factor, mean IoU of the mask (``mask``)."""
    right: dict[str, list[bool]] = {name: [] for name in FACTORS}
    overlaps = []
    labels = truth(scenes_)
    for i, (scene, judged) in enumerate(zip(scenes_, oracle.judge(pictures), strict=True)):
        for name, options in CHOICES.items():
            right[name].append(judged.factors[name] == options[int(labels[name][i])])
        if scene.identity.basic:
            right["colors"].append(judged.colors == {color.name for color in scene.identity.colors})
        there, said = masks[i, 0] > 0.5, judged.mask > 0
        overlaps.append(float((there & said).sum() / (there | said).sum()))
    figures = {name: sum(values) / len(values) for name, values in right.items()}
    return figures | {"mask": sum(overlaps) / len(overlaps)}


@torch.no_grad()
def validate_identity(oracle: Oracle, count: int, seed: int) -> float:
    """Share of held-out identities whose other picture is nearer than one of another identity of the same class."""
    rng = random.Random(f"identity {seed}")
    won = []
    for _ in range(count):
        kind = rng.choice(CLASSES)
        one, other = sample_identity(rng, kind), sample_identity(rng, kind)
        views = [sample_scene(rng, "all", identity) for identity in (one, one, other)]
        drawings = [draw(view) for view in views]
        on = oracle.device
        vectors = oracle.identity(pictures_tensor(drawings).to(on), (masks_tensor(drawings) > 0.5).float().to(on))
        won.append(one == other or float(vectors[0] @ vectors[1]) > float(vectors[0] @ vectors[2]))
    return sum(won) / len(won)


def _report(oracle: Oracle, held_out: tuple, rebuilt: torch.Tensor | None) -> tuple[dict[str, str], bool]:
    scenes_, pictures, masks = held_out
    results = {"renders": validate(oracle, scenes_, pictures, masks)}
    if rebuilt is not None:
        results["reconstructions"] = validate(oracle, scenes_, rebuilt, masks)
    figures = {f"{where} {name}": f"{value:.3f}" for where, result in results.items() for name, value in result.items()}
    figures["identity"] = f"{validate_identity(oracle, TRIPLES, 1):.3f}"
    reached = [value >= (MASK_GATE if name == "mask" else GATE)
               for result in results.values() for name, value in result.items()]
    passed = rebuilt is not None and all(reached)
    return figures, passed


def train_oracle(folder: Path, deadline: Deadline, on: torch.device, autoencoder_file: Path | None,
                 start: Path | None = None, steps: int = STEPS) -> bool:
    """Train until the deadline (False) or until ``steps`` are done (True when every factor passes its gate)."""
    autoencoder = load_autoencoder(autoencoder_file).to(on) if autoencoder_file is not None else None
    torch.manual_seed(0)
    oracle = Oracle().to(on, memory_format=torch.channels_last)
    run = Run(folder / "oracle.pt", {"oracle": oracle}, weight_decay=0.01)
    if not run.restore() and start is not None and start.is_file():
        oracle.load_state_dict(load_oracle(start).state_dict())
        run.adopt(start)
    deadline.log(f"oracle: at step {run.step} of {steps}")
    pool = PairPool(POOL, run.step + 1, autoencoder, on)
    pool.refresh(POOL // 6)
    while run.step < steps and not deadline.over:
        pool.refresh(6)
        scenes_, pictures, masks = pool.take()
        with torch.autocast(on.type, torch.bfloat16, enabled=fast_half(on)):
            loss = oracle_loss(oracle, scenes_, spoil(pictures).to(on), masks.to(on))
        run.update(loss, cosine(run.step, steps, PEAK_RATE, 200))
        if run.step % 500 == 0:
            _evaluate(run, oracle, autoencoder, folder, deadline, last=False)
    run.save()
    return run.step >= steps and _evaluate(run, oracle, autoencoder, folder, deadline, last=True)


def _evaluate(run: Run, oracle: Oracle, autoencoder: torch.nn.ModuleDict | None, folder: Path, deadline: Deadline,
              last: bool) -> bool:
    """What the running mean of the weights can do, logged and saved; second looks are fitted when it is the last."""
    scenes_ = scenes(CHECKED if last else 96, "held_out", 2)
    drawings = draw_all(scenes_)
    pictures, masks = pictures_tensor(drawings), masks_tensor(drawings)
    rebuilt = reconstruct(autoencoder, pictures.to(oracle.device)).cpu() if autoencoder is not None else None
    run.swap_mean()
    if last:
        fit_second_looks(oracle.eval(), autoencoder, LOOKED_AT)
    figures, passed = _report(oracle.eval(), (scenes_, pictures, masks), rebuilt)
    deadline.log(f"oracle step {run.step} " + ", ".join(f"{name} {value}" for name, value in figures.items()))
    tensors = {key: value.detach().half().cpu().contiguous() for key, value in oracle.state_dict().items()}
    save_file(tensors, folder / "oracle.safetensors", metadata=figures | {"steps": str(run.step)})
    run.swap_mean()
    oracle.train()
    return passed
