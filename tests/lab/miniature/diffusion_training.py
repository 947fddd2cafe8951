"""Stage 3: denoiser and picture encoder, with a text encoder that was taught before, on cached latents; gates read by
the oracle."""
from __future__ import annotations

import contextlib
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean

import torch
from PIL import Image
from safetensors.torch import load_file

from .alike import Alike
from .autoencoder import load_autoencoder
from .checkpoint import load_networks, save_checkpoint
from .comfyui import fast_half
from .contrastive import Matching, draw_captioned
from .deadline import Deadline
from .diffusion import diffusion_loss, sample
from .factors import CLASSES, SPOKEN_COLORS, Identity, sample_identity, sample_scene
from .flow_network import LanguageModel, is_flow, new_networks_flow
from .gates import missed
from .grammar import PLACES, article, caption, identity_words, said
from .language import learn_language
from .latents import QUIET_CAPTIONS, Corpus, load_corpus, make_shards
from .measures import colors_kept
from .network import new_networks, new_networks_xl, predicts_velocity
from .oracle import Oracle, load_oracle
from .picture_words import teach_words
from .reading import figures_of_reading
from .run_state import Run, cosine
from .twin_start import start_twin

PICTURES = 1_500_000
BATCH = 16                    # small: text follows 2.7 times as fast by pictures seen as with 64 rows
PEAK_RATE = 5e-4              # at that batch; grows with its root
NO_CAPTION = 0.1
VISUAL_SHARE = 0.25           # rows with a reference; their captions never say how the subject looks
NETWORKS = {"miniature": new_networks, "miniature_xl": new_networks_xl, "miniature_flow": new_networks_flow}
TEXT_PICTURES = 800_000       # the SD1.x miniature's text encoder learns beside its U-Net up to here, then is frozen
MATCHING_WEIGHT = 0.1        # of the text encoder's own objective beside the U-Net's,
MATCHING_EVERY = 4            # in every so manieth step
CHECKED = 240                 # prompts that the gate reads
FEW = 3                       # factors of a prompt that is no hard one


Part = tuple[torch.Tensor, torch.Tensor, "torch.Tensor | None", torch.Tensor]


def draw_batch(corpus: Corpus, rows: int, empty: torch.Tensor, visual: int) -> list[Part]:
    """(latents, tokens, references or None, foreground): rows without, then ``visual`` rows with visual tokens.

    ``empty``: tokens of the empty prompt.
    """
    on, spread = corpus.latents.device, corpus.spread
    captions = corpus.tokens.shape[1]
    plain_rows = torch.randint(len(corpus.latents), (rows - visual,), device=on)
    which = torch.randint(len(corpus.with_reference), (visual,), device=on)
    parts = []
    quiet = captions - QUIET_CAPTIONS
    for chosen, sentences, references in ((plain_rows, (0, quiet), None),
                                          (corpus.with_reference[which], (quiet, captions), corpus.references[which])):
        sentence = torch.randint(*sentences, (len(chosen),), device=on)
        tokens = corpus.tokens[chosen, sentence].long()
        silent = torch.rand(len(chosen), 1, device=on) < NO_CAPTION
        parts.append((corpus.latents[chosen].float() / spread, torch.where(silent, empty, tokens),
                      None if references is None else references.float() / 255, corpus.foreground[chosen] / 255))
    return parts[:1] if visual == 0 else parts


def train_diffusion(folder: Path, deadline: Deadline, on: torch.device, autoencoder_file: Path, oracle_file: Path, *,
                    start: Path | None = None, name: str = "miniature", batch: int = BATCH, shards: int = 24,
                    workers: int = 0, pictures: int = PICTURES, teach: int = 0) -> bool:
    """Train until the deadline (False) or until ``pictures`` were seen (True when the oracle's gates are passed).

    ``name``: "miniature" (SD1.x, whose text encoder learns until ``TEXT_PICTURES``), "miniature_xl" (its SDXL twin,
    with the miniature's encoders) or "miniature_flow" (Z-Image, whose text encoder is taught its language first); the
    folder gets its .pt, .safetensors and .png.
    ``teach``: steps in which the picture encoder learns the text encoder's words first.
    """
    files = make_shards(folder, autoencoder_file, shards, workers, on, deadline)
    if not files:
        return False
    networks = NETWORKS[name]()
    if name == "miniature":
        networks["matching"] = Matching()
    networks.to(on)
    corpus = load_corpus(files, networks["text"], on, deadline.log)
    if not _prepare(networks, corpus, folder, start, deadline):
        return False
    text = networks["text"]
    learning = _LearningText(networks, corpus) if "matching" in networks else None
    run = Run(folder / f"{name}.pt", networks, mean_decay=0.9995, weight_decay=0.01)
    if not run.restore() and start is not None and start.is_file():
        run.adopt(start)
    deadline.log(f"{name}: {run.seen} of {pictures} pictures seen")
    if teach and name == "miniature":
        teach_words(networks, corpus, teach, deadline)
        run.take_as_mean()
    judge = _Judge(folder / f"{name}.safetensors", autoencoder_file, oracle_file, corpus.spread, on, deadline)
    visual, smooth = round(VISUAL_SHARE * batch) if name == "miniature" else 0, None
    draw = _batches(corpus, text, batch, visual)
    torch.manual_seed(run.seen)
    while run.seen < pictures and not deadline.over:
        with torch.autocast(on.type, torch.bfloat16, enabled=fast_half(on)):
            of_text = 0.0 if learning is None else learning.loss(run)
            losses = [diffusion_loss(networks, *part) for part in draw()]
        loss = sum(losses) / batch
        rate = cosine(run.seen - run.adopted, pictures - run.adopted, PEAK_RATE * (batch / BATCH) ** 0.5, 64 * 100)
        run.update(loss + of_text, rate, rows=batch)
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        if run.step % 200 == 0:
            deadline.log(f"{name} {run.seen} pictures, loss {smooth:.4f}")
        if run.seen // 100_000 != (run.seen - batch) // 100_000:
            judge(run, networks, 48)
    run.save()
    judge.save_checkpoint(run, networks, {})
    return run.seen >= pictures and judge(run, networks, CHECKED)


def _batches(corpus: Corpus, text: torch.nn.Module, batch: int, visual: int) -> Callable[[], list[Part]]:
    """What draws the parts of a batch."""
    empty = text.tokens([""])
    if not isinstance(text, LanguageModel):
        return lambda: draw_batch(corpus, batch, empty, visual)
    alike = Alike(corpus)

    def draw() -> list[Part]:
        latents, tokens, foreground = alike.draw(batch)
        silent = torch.rand(()) < NO_CAPTION  # all of them, as their lengths have to agree
        return [(latents, empty.expand(batch, -1) if silent else tokens, None, foreground)]

    return draw


def _prepare(networks: torch.nn.ModuleDict, corpus: Corpus, folder: Path, start: Path | None, deadline: Deadline
             ) -> bool:
    """Give the networks the weights in ``start`` (while there are none of the twin, the miniature's beside them) and a
    text encoder that has been taught before and stays as it is; False when the deadline comes first."""
    if is_flow(networks):
        return learn_language(networks["text"], folder / "language.pt", deadline)
    miniature = None if start is None else start.with_name("miniature.safetensors")
    if start is not None and start.is_file():
        load_networks(networks, load_file(start))
    elif predicts_velocity(networks) and miniature is not None and miniature.is_file():
        start_twin(networks, miniature)
    if predicts_velocity(networks):
        networks["text"].requires_grad_(False)
    return True


class _LearningText:
    """The text encoder's own objective, until it has learned and is frozen."""

    def __init__(self, networks: torch.nn.ModuleDict, corpus: Corpus):
        self.text, self.matching, self.corpus = networks["text"], networks["matching"], corpus

    def loss(self, run: Run) -> torch.Tensor | float:
        """What a step adds to the U-Net's loss: nothing, once ``TEXT_PICTURES`` were seen."""
        if run.seen >= TEXT_PICTURES:
            self.text.requires_grad_(False)
        if run.seen >= TEXT_PICTURES or run.step % MATCHING_EVERY:
            return 0.0
        return MATCHING_WEIGHT * self.matching(self.text, *draw_captioned(self.corpus))


class _Judge:
    """Saves the checkpoint and a contact sheet, and lets the oracle read prompted pictures."""

    def __init__(self, file: Path, autoencoder_file: Path, oracle_file: Path, spread: float, on: torch.device,
                 deadline: Deadline):
        self.file, self.spread, self.deadline = file, spread, deadline
        self.autoencoder = load_autoencoder(autoencoder_file).to(on)
        self.oracle: Oracle | None = load_oracle(oracle_file).to(on) if oracle_file.is_file() else None

    def __call__(self, run: Run, networks: torch.nn.ModuleDict, count: int) -> bool:
        prompts = prompts_to_judge(count)
        pictures = self._draw_all(run, networks, prompts)
        contact_sheet(pictures[:48], 8, self.file.with_suffix(".png"))
        shares = factor_table(self.oracle, prompts, pictures) if self.oracle is not None else {}
        if shares and count == CHECKED:
            shares |= self._whole_check(run, networks, prompts, pictures)
        table = " ".join(f"{name} {value:.2f}" for name, value in shares.items()) or "no oracle yet"
        self.deadline.log(f"{self.file.stem} {run.seen} pictures: {table}")
        self.save_checkpoint(run, networks, shares)
        if count != CHECKED or not shares:
            return False
        failed = missed(shares)
        self.deadline.log(f"{self.file.stem} gates missed: {'; '.join(failed) or 'none'}")
        return not failed

    def _whole_check(self, run: Run, networks: torch.nn.ModuleDict, prompts: list[str], pictures: torch.Tensor
                     ) -> dict[str, float]:
        drawn = self._draw_all(run, networks, [prompt for prompt, _ in spoken_colors()])
        shares = {"spoken_colors": spoken_colors_shown(self.oracle, drawn)}
        shares |= by_number_of_factors(self.oracle, prompts, pictures)
        with self._mean_weights(run, networks):
            return shares | figures_of_reading(networks, self.oracle, self._decode)

    def save_checkpoint(self, run: Run, networks: torch.nn.ModuleDict, shares: dict[str, float]) -> None:
        """miniature.safetensors of the mean weights, with the shares of factors shown as its metadata."""
        figures = {"pictures": str(run.seen)} | {name: f"{value:.3f}" for name, value in shares.items()}
        run.swap_mean()
        save_checkpoint(networks, self.autoencoder, self.spread, self.file, figures)
        run.swap_mean()

    def _draw_all(self, run: Run, networks: torch.nn.ModuleDict, prompts: list[str]) -> torch.Tensor:
        with self._mean_weights(run, networks):
            return torch.cat([self._decode(sample(networks, prompts[i:i + 24], seed=i))
                              for i in range(0, len(prompts), 24)])

    @contextlib.contextmanager
    def _mean_weights(self, run: Run, networks: torch.nn.ModuleDict) -> Iterator[None]:
        run.swap_mean()
        networks.eval()
        try:
            yield
        finally:
            networks.train()
            run.swap_mean()

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.autoencoder["decoder"](latents * self.spread).clamp(0, 1).float()


def prompts_to_judge(count: int) -> list[str]:
    """Fixed prompts of the whole grammar for subjects of basic colours, half of them for combinations training never
    saw."""
    rng = random.Random("prompts to judge")
    prompts = []
    while len(prompts) < count:
        split = "held_out" if len(prompts) % 2 else "train"
        scene = sample_scene(rng, "all", sample_identity(rng, basic=True))
        if scene.held_out == (split == "held_out"):
            prompts.append(caption(scene, rng))
    return prompts


def factor_table(oracle: Oracle, prompts: list[str], pictures: torch.Tensor) -> dict[str, float]:
    """Share of pictures that show each prompted factor; ``all``: mean over all prompted factors."""
    verdicts: dict[str, list[bool]] = defaultdict(list)
    for prompt, judged in zip(prompts, oracle.judge(pictures), strict=True):
        for name, right in judged.agrees(said(prompt)).items():
            verdicts[name].append(right)
    every = [right for rights in verdicts.values() for right in rights]
    return {name: sum(v) / len(v) for name, v in sorted(verdicts.items())} | {"all": sum(every) / len(every)}


def by_number_of_factors(oracle: Oracle, prompts: list[str], pictures: torch.Tensor) -> dict[str, float]:
    """Share of factors shown by prompts that state up to three, and by those that state more."""
    verdicts: dict[str, list[bool]] = {"one_to_three": [], "four_to_six": []}
    for prompt, judged in zip(prompts, oracle.judge(pictures), strict=True):
        rights = list(judged.agrees(said(prompt)).values())
        verdicts["one_to_three" if len(rights) <= FEW else "four_to_six"] += rights
    return {name: sum(rights) / len(rights) if rights else 0.0 for name, rights in verdicts.items()}


def spoken_colors() -> list[tuple[str, Identity]]:
    """A prompt for every colour that has words, classes and places by turns, and whom it asks for."""
    asked = [Identity(CLASSES[i % len(CLASSES)], "plain", color, color) for i, color in enumerate(SPOKEN_COLORS)]
    places = [phrases[0] for phrases in PLACES.values()][:len(CLASSES) - 1]  # one fewer: no class keeps to one place
    return [(f"a photo of {article(f'{identity_words(identity)} {identity.kind}')} {places[i % len(places)]}", identity)
            for i, identity in enumerate(asked)]


def spoken_colors_shown(oracle: Oracle, pictures: torch.Tensor) -> float:
    """Share of the pictures, one a prompt of ``spoken_colors``, whose subject has the colour."""
    return fmean(colors_kept(picture, judged, identity) for picture, judged, (_, identity)
                 in zip(pictures.cpu(), oracle.judge(pictures), spoken_colors(), strict=True))


def contact_sheet(pictures: torch.Tensor, columns: int, file: Path) -> None:
    """Pictures (B, 3, H, W) in 0..1 as one PNG."""
    rows, (height, width) = -(-len(pictures) // columns), pictures.shape[2:]
    sheet = Image.new("RGB", (columns * (width + 2), rows * (height + 2)))
    for i, picture in enumerate(pictures.cpu()):
        tile = Image.fromarray((picture.permute(1, 2, 0) * 255).round().byte().numpy())
        sheet.paste(tile, (i % columns * (width + 2), i // columns * (height + 2)))
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(file)
