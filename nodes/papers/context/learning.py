"""Training the contextualizer (Diverse Context Algorithm 1): once for each text encoder, without any subject."""
from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...files import NotWritten
from ...notice import notice
from ...text.encode import encode, repeatable
from ...text.encoders import text_encoders
from ...text.tokens import PromptTokenizer, PromptTokens
from ...text.vectors import WordVectors
from ...training.description import encoder_fingerprint
from ...training.fingerprint import fingerprint
from ...training.optimizer import optimizer_tensors, restore_optimizer
from ...training.restoring import matching, mismatch
from ...training.session import text_session
from .contextualizer import ContextNetwork, Contextualizer, Sizes
from .files import read_begun, write_begun
from .loss import hidden_word_logits
from .masking import MASK, draw_positions, hidden_words, hideable, masked

HELD_OUT = 0.1  # share of the prompts that are not learned from
CHECKED = 256  # of these, how many are looked at
WARM_UP = 100


@dataclass(frozen=True)
class Learning:
    """Numbers of a training. share: ρ. rate: of AdamW, which falls to nothing by half a cosine."""

    steps: int = 2000
    batch: int = 32
    rate: float = 1e-3
    share: float = 0.15
    width: int = 256
    layers: int = 2
    heads: int = 4
    seed: int = 0


@dataclass(frozen=True)
class Progress:
    """After a step. accuracy: share of hidden words of held-out prompts that are told; unigram: of those that the most
    frequent word gives. None between two checks."""

    step: int
    steps: int
    loss: float
    accuracy: float | None = None
    unigram: float | None = None


def made_of(encoder: str, prompts: Sequence[str], how: Learning) -> str:
    """Digest of all that a contextualizer depends on."""
    return fingerprint(encoder, prompts, how)


def train_contextualizer(clip, prompts: Sequence[str], how: Learning, name: str, each_step: Callable[[Progress], None],
                         check_every: int = 100, begun: Path | None = None,
                         save: Callable[[Contextualizer], object] = lambda learned: None) -> Contextualizer:
    """ψ and its mask embedding for `clip` from whole prompts, without a slot.

    save: called with what is learned in the end. begun: where the state is kept if anything, such as ComfyUI's
    interruption, ends the training before `save` has; from there the same training goes on as if it had not been.
    Raises ValueError if there are too few prompts to hold some out, or if none has two words.
    """
    encoder = encoder_fingerprint(clip)
    with text_session(clip) as text:
        course = _begun(lambda: _Course(text, prompts, how, name, encoder), begun)
        with _kept(course, begun):
            learned = course.run(each_step, check_every)
            save(learned)
        return learned


def _begun(new: Callable[[], _Course], begun: Path | None) -> _Course:
    """The training as far as the file says, or a new one."""
    course = new()
    if begun is None or not begun.is_file():
        return course
    try:
        course.take_up(*read_begun(begun, course.made_of, course.how.steps))
    except ValueError:
        notice(f"The training of the contextualizer begins anew, because its state {begun.name} is damaged.")
        return new()
    return course


@contextlib.contextmanager
def _kept(course: _Course, begun: Path | None) -> Iterator[None]:
    """The state is in the file `begun` if the context ends by an exception, else in none."""
    try:
        yield
    except BaseException:
        if begun is not None and course.step:
            notice(_keep(course, begun))
        raise
    if begun is not None:
        with contextlib.suppress(OSError):
            begun.unlink(missing_ok=True)


def _keep(course: _Course, begun: Path) -> str:
    """Writes the state; what came of it, in one sentence."""
    reached = f"The training of the contextualizer ended at step {course.step} of {course.how.steps}"
    try:
        write_begun(begun, course.made_of, course.step, course.state())
    except NotWritten as error:
        return f"{reached}, and Run cannot go on from there: {error}"
    return f"{reached}; Run goes on from there."


class _Course:
    """One training."""

    def __init__(self, clip: Any, prompts: Sequence[str], how: Learning, name: str, encoder: str):
        self.clip, self.how, self.name, self.encoder = clip, how, name, encoder
        self.made_of = made_of(encoder, prompts, how)
        self.tokenizer = PromptTokenizer(clip, {})
        self.device = clip.patcher.load_device
        learned, self.held_out = _parted([self.tokenizer(prompt) for prompt in dict.fromkeys(prompts)], how.seed)
        self.learned = list(_of_one_length(learned))
        counts = Counter(word for tokens in learned for word in _words(tokens))
        self.vocabulary = sorted(counts)
        self.places = {word: place for place, word in enumerate(self.vocabulary)}
        self.commonest = self.places[counts.most_common(1)[0][0]]
        self.rng = torch.Generator().manual_seed(how.seed)
        self.choice = random.Random(how.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(how.seed)
            self.mask = {e.key: torch.nn.Parameter(_like_a_word(e.table).to(self.device)) for e in text_encoders(clip)}
            self.network = ContextNetwork(Sizes(self._text_width(), len(self.vocabulary), how.width, how.layers,
                                                how.heads)).to(self.device)
        self.parameters = {**{f"network.{name}": p for name, p in self.network.named_parameters()},
                           **{f"mask.{key}": p for key, p in self.mask.items()}}
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=how.rate, weight_decay=0.01)
        self.step, self.draws = 0, self._draws()

    def run(self, each_step: Callable[[Progress], None], check_every: int) -> Contextualizer:
        steps, reached = self.how.steps, None
        while self.step < steps:
            loss = self._optimise(self.step + 1)
            reached = self.accuracy() if self.step % check_every == 0 or self.step == steps else None
            each_step(Progress(self.step, steps, loss, *(reached or ())))
        return self._learned(*(reached or self.accuracy()))

    def state(self) -> dict[str, Tensor]:
        """All that the steps after `step` depend on."""
        return {**{f"part.{name}": p.detach() for name, p in self.parameters.items()}, **self.draws,
                **{f"optimizer.{name}": t for name, t in optimizer_tensors(self.optimizer).items()}}

    def take_up(self, state: Mapping[str, Tensor], step: int) -> None:
        """Goes on from what `state` returned after that step. Raises ValueError where it does not fit; this training
        then is of no use."""
        restore_optimizer(self.optimizer, {name.removeprefix("optimizer."): t for name, t in state.items()
                                           if name.startswith("optimizer.")})
        for name, p in self.parameters.items():
            p.data.copy_(matching(state, f"part.{name}", p.shape))
        self._draw_on(state)
        self.step, self.draws = step, self._draws()

    def _draws(self) -> dict[str, Tensor]:
        """How far both generators are."""
        return {"draws.hidden": self.rng.get_state(), "draws.prompts": torch.tensor(self.choice.getstate()[1])}

    def _draw_on(self, state: Mapping[str, Tensor]) -> None:
        """Puts the generators where they were. Raises ValueError."""
        try:
            self.rng.set_state(state["draws.hidden"])
            version, _, gauss = self.choice.getstate()
            self.choice.setstate((version, tuple(state["draws.prompts"].tolist()), gauss))
        except (LookupError, ValueError, TypeError, RuntimeError, OverflowError) as error:
            raise mismatch("draws") from error

    def _learned(self, accuracy: float, unigram: float) -> Contextualizer:
        weights = {name: weight.detach().cpu().clone() for name, weight in self.network.state_dict().items()}
        mask = WordVectors({key: rows.detach().cpu().clone() for key, rows in self.mask.items()})
        sizes = Sizes(self._text_width(), len(self.vocabulary), self.how.width, self.how.layers, self.how.heads)
        return Contextualizer(self.name, self.encoder, sizes, weights, torch.tensor(self.vocabulary), mask,
                              {"accuracy": accuracy, "unigram": unigram, "prompts": sum(map(len, self.learned)),
                               "steps": self.how.steps}, self.made_of)

    @torch.no_grad()
    def accuracy(self) -> tuple[float, float]:
        """Share of hidden words of held-out prompts that are told, and that the commonest word gives."""
        rng, told, common, count = torch.Generator().manual_seed(0), 0, 0, 0
        for alike in _of_one_length(self.held_out):
            logits, words = self._guess(alike, rng)
            told += int((logits.argmax(1) == words).sum())
            common += int((words == self.commonest).sum())
            count += len(words)
        return told / max(1, count), common / max(1, count)

    def _optimise(self, step: int) -> float:
        group = self.choice.choices(self.learned, [len(alike) for alike in self.learned])[0]
        logits, words = self._guess(self.choice.choices(group, k=self.how.batch), self.rng)
        loss = F.cross_entropy(logits, words)
        for settings in self.optimizer.param_groups:
            settings["lr"] = self.how.rate * _share_of_rate(step, self.how.steps)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.step, self.draws = step, self._draws()
        return loss.item()

    def _guess(self, prompts: Sequence[PromptTokens], rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Logits and places of the words that are hidden now."""
        hidden = [masked(tokens, draw_positions(hideable(tokens, self.places), self.how.share, rng), self.tokenizer)
                  for tokens in prompts]
        encoded = encode(self.clip, hidden, [{MASK: self.mask}] * len(hidden))
        words = torch.tensor([self.places[word] for tokens in hidden for word in hidden_words(tokens)],
                             device=self.device)
        return hidden_word_logits(self.network, encoded), words

    def _text_width(self) -> int:
        with torch.no_grad():
            return encode(self.clip, [self.held_out[0]], [{}]).cond.shape[-1]


def _parted(prompts: Sequence[PromptTokens], seed: int) -> tuple[list[PromptTokens], list[PromptTokens]]:
    """Prompts to learn from and, of those whose words all occur among these, some that are held out."""
    usable = [tokens for tokens in prompts if len(_words(tokens)) > 1]
    shuffled = random.Random(seed).sample(usable, len(usable))
    count = round(HELD_OUT * len(shuffled))
    learned = shuffled[count:]
    known = {word for tokens in learned for word in _words(tokens)}
    held_out = [tokens for tokens in shuffled[:count] if known.issuperset(_words(tokens))][:CHECKED]
    if not held_out:
        raise ValueError(f"{len(prompts)} prompts are too few to learn from and to hold some out; connect a Prompt Set "
                         "with a hundred or more, such as a rich one.")
    return learned, held_out


def _words(tokens: PromptTokens) -> list[int]:
    pieces = tokens.layout.pieces
    return [pieces[place].id for place in tokens.layout.of_kind("word")]  # ty: ignore[invalid-explicit-return]


def _of_one_length(prompts: Sequence[PromptTokens]) -> Iterator[list[PromptTokens]]:
    """Those that can be encoded together."""
    groups: dict[int, list[PromptTokens]] = {}
    for tokens in prompts:
        groups.setdefault(tokens.layout.length, []).append(tokens)
    if repeatable(groups):
        yield list(prompts)
    else:
        yield from groups.values()


def _like_a_word(table: Tensor) -> Tensor:
    """(1, d) float32 at random, as long as a row of the table is on average."""
    with torch.no_grad():
        length = table[:1000].float().norm(dim=1).mean().cpu()
    row = torch.randn(1, table.shape[1])
    return row * length / row.norm()


def _share_of_rate(step: int, steps: int) -> float:
    fall = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / steps)).item())
    return min(1.0, step / WARM_UP) * fall
