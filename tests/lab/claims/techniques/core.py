"""CoRe (Wu et al. 2024): Textual Inversion, context regularization and its ablations, second stage, test time."""
from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from personalize.nodes.papers.core.presets import FORMULAS, RELEASED, Weighting, core_terms
from personalize.nodes.papers.core.test_time import Refinement, Scene, refine
from personalize.nodes.text.apply import apply_concepts
from personalize.nodes.text.concept import Concept, initial_vectors
from personalize.nodes.training.applied import with_weights
from personalize.nodes.training.diffusion import DEBIASED, DiffusionLoss
from personalize.nodes.training.parts.embedding import EmbeddingPart
from personalize.nodes.training.parts.weights import UNetPart
from personalize.nodes.training.plan import Settings

from ..bounds import SUBJECT, ClassWord, NearestWords, Truth
from ..estimator import batches, gradient
from ..store import Cell, Drawn
from ..task import Task, many_factors
from ..technique import AsksOracle, Method, Technique
from ..training import subject_of, train
from ..world import World


@dataclass(frozen=True)
class Learning:
    """Numbers of a training. rate: of AdamW."""

    steps: int
    batch: int
    rate: float

    def settings(self, seed: int) -> Settings:
        """For the pack's loop."""
        return Settings(self.steps, self.batch, seed=seed)


# The paper's rates, but for the U-Net: it has 2e-6 there, and seven times as many steps. Half of the paper's 300 steps
# of the first stage, and 4 rows in place of 6: a cell of CoRe then takes a minute of one core, a table of eight
# subjects an hour.
STAGE_1 = Learning(150, 4, 5e-3)
STAGE_2 = Learning(150, 4, 5e-5)
TEST_TIME = Learning(10, 6, 5e-4)
SHARES, MANY = (0.1, 0.3, 1.0), 4
PROBED, PROBED_BATCHES = 15, 8  # steps after which a share of the gradient is measured, and on how many batches


@dataclass(frozen=True)
class Embedding:
    """Textual Inversion from the class word on; with CoRe's terms unless `weighting` is None.

    estimate: attention by the estimator. rescaled: Eq. 6 from 40 % to 60 % of the steps. vectors: of the word. share:
    the weights are multiplied so that early in the training the terms' gradient is so many times as long as the
    diffusion loss's; None for the weights as they are.
    """

    name: str
    learning: Learning
    weighting: Weighting | None = RELEASED
    estimate: bool = False
    rescaled: bool = True
    vectors: int = 1
    share: float | None = None
    continues: None = None
    revision: int = 1

    def draw(self, world: World, task: Task, earlier: Cell | None) -> Drawn:
        """See Method."""
        started, before = time.monotonic(), concept_of(task, self.vectors)
        window = (self.learning.steps * 2 // 5 + 1, self.learning.steps * 3 // 5) if self.rescaled else None
        trained = train(world, subject_of(task, before), [EmbeddingPart(self.learning.rate, window)],
                        (self.diffusion, *self.pulling(world, task).terms(task)), self.learning.settings(task.seed))
        figures = {"learning_seconds": time.monotonic() - started, **trained.figures(),
                   "length_over_class_word": _length_ratio(trained.concept, before, world)}
        return Drawn(dict(enumerate(drawn_with(world, task, trained.concept))), trained.concept.vectors, figures)

    @property
    def diffusion(self) -> DiffusionLoss:
        """As in the papers: all noise levels count alike."""
        return DiffusionLoss()

    def pulling(self, world: World, task: Task) -> Embedding:
        """The same with weights that give the terms their `share`."""
        if self.weighting is None or self.share is None:
            return self
        times = self.share / self._measured_share(world, task)
        return replace(self, weighting=self.weighting.times(times, times))

    def _measured_share(self, world: World, task: Task) -> float:
        """Of the terms with the weights as they are, after the first steps of a training."""
        learning, terms, found = replace(self.learning, steps=PROBED), self.terms(task), []

        def each_step(trainer) -> None:
            if trainer.step == PROBED:
                for batch in batches(trainer, PROBED_BATCHES):
                    pulls = sum(gradient(trainer, term, batch) for term in terms)
                    found.append(float(pulls.norm() / gradient(trainer, self.diffusion, batch).norm()))

        train(world, subject_of(task, concept_of(task, self.vectors)), [EmbeddingPart(learning.rate)],
              (self.diffusion, *terms), learning.settings(task.seed), each_step=each_step)
        return statistics.fmean(found)

    def terms(self, task: Task) -> tuple:
        """CoRe's loss terms on the regularization prompts of all kinds."""
        if self.weighting is None:
            return ()
        return core_terms(task.regularization, self.weighting, self.estimate)


@dataclass(frozen=True)
class Debiased(Embedding):
    """The same with noisier levels counting more."""

    @property
    def diffusion(self) -> DiffusionLoss:
        """√SNR times in the clean latent."""
        return DiffusionLoss(noise_levels=DEBIASED)


@dataclass(frozen=True)
class SecondStage:
    """All weights of the U-Net on the diffusion loss, with the embedding that `continues` has learned."""

    name: str
    continues: Method
    learning: Learning
    revision: int = 1

    def draw(self, world: World, task: Task, earlier: Cell | None) -> Drawn:
        """See Method."""
        started, concept = time.monotonic(), learned_by(earlier, task)
        trained = train(world, subject_of(task, concept), [UNetPart(self.learning.rate)], (DiffusionLoss(),),
                        self.learning.settings(task.seed))
        seconds = time.monotonic() - started
        model, _ = with_weights(world.networks.model, None, trained.weights)
        return Drawn(dict(enumerate(drawn_with(world, task, concept, model))), figures={"learning_seconds": seconds})


@dataclass(frozen=True)
class Again(AsksOracle):
    """Prompts that failed, drawn once more from other noise: what a second try gives without any refinement."""

    name: str
    continues: Method
    revision: int = 1

    def draw(self, world: World, task: Task, earlier: Cell | None) -> Drawn:
        """See Method."""
        return self._drawn(world, task, {number: learned_by(earlier, task) for number in earlier.failed})

    @staticmethod
    def _drawn(world: World, task: Task, concepts: Mapping[int, Concept]) -> Drawn:
        prompts, clip = task.prompts(SUBJECT), world.networks.clip
        encoded = [world.encode(prompts[number], apply_concepts(clip, (concept,)))
                   for number, concept in concepts.items()]
        noise = task.noise(world, "again")[list(concepts)]
        return Drawn(dict(zip(concepts, world.draw_each(encoded, noise, task.sampling), strict=True)))


@dataclass(frozen=True)
class TestTime(Again):
    """The same prompts from the same other noise, each with the vector refined for it by CoRe's losses alone."""

    learning: Learning = TEST_TIME
    weighting: Weighting = RELEASED

    def draw(self, world: World, task: Task, earlier: Cell | None) -> Drawn:
        """See Method."""
        started, concept = time.monotonic(), learned_by(earlier, task)
        refined = {number: self._refined(world, task, concept, task.prompts(SUBJECT)[number])
                   for number in earlier.failed}
        seconds = (time.monotonic() - started) / max(1, len(refined))
        drawn = self._drawn(world, task, refined)
        return replace(drawn, figures={"refining_seconds_a_prompt": seconds} if refined else {})

    def _refined(self, world: World, task: Task, concept: Concept, prompt: str) -> Concept:
        model, clip, vae = world.networks
        numbers = self.learning
        how = Refinement(prompt, self.weighting, numbers.steps, numbers.rate, numbers.batch, task.seed)
        scene = Scene(latents=task.noise(world)[:1], subjects=(subject_of(task, concept),), vae=vae)
        return refine(model, clip, (concept,), how, scene, lambda record: None)[0]


def concept_of(task: Task, vectors: int = 1) -> Concept:
    """The subject before anything is learned: its class word, so many times."""
    return Concept(SUBJECT, task.identity.kind, task.identity.kind, vectors)


def learned_by(cell: Cell, task: Task) -> Concept:
    """The subject as an earlier method has learned it."""
    return concept_of(task).with_vectors(cell.drawn.learned)


def drawn_with(world: World, task: Task, concept: Concept, model=None) -> Tensor:
    """A picture a template, all with the concept."""
    return task.draw(world, SUBJECT, apply_concepts(world.networks.clip, (concept,)), model)


def _length_ratio(concept: Concept, start: Concept, world: World) -> float:
    before = initial_vectors(start, world.networks.clip)
    return sum(float(concept.vectors[key].norm() / before[key].norm()) for key in before) / len(before)


def technique(quick: bool) -> Technique:
    """All methods of the claim table."""
    first, second, refining = STAGE_1, STAGE_2, TEST_TIME
    if quick:
        first, second, refining = (replace(numbers, steps=steps, batch=2)
                                   for numbers, steps in ((first, 3), (second, 1), (refining, 1)))
    core = Embedding("TI+CoRe", first)
    methods: tuple[Method, ...] = (
        Truth(), ClassWord(), NearestWords(),
        Embedding("TI", first, None, rescaled=False),
        Embedding("TI+rescaling", first, None),
        Debiased("TI+debiased", first, None, rescaled=False),
        core,
        Debiased("TI+CoRe+debiased", first),
        Embedding("TI+CoRe-equations", first, FORMULAS["Eqs. 3–4"]),
        Embedding("TI+CoRe-estimator", first, estimate=True),
        Embedding("TI+CoRe-no-embedding-loss", first, replace(RELEASED, embedding=0.0)),
        Embedding("TI+CoRe-no-attention-loss", first, replace(RELEASED, attention=0.0)),
        Embedding("TI+CoRe-no-rescaling", first, rescaled=False),
        *(Embedding(f"TI+CoRe-share-{share:g}", first, share=share) for share in SHARES),
        Embedding(f"TI-{MANY}-vectors", first, None, rescaled=False, vectors=MANY),
        Embedding(f"TI+CoRe-{MANY}-vectors", first, vectors=MANY),
        SecondStage("TI+CoRe+U-Net", core, second),
        Again("failed-again", core),
        TestTime("failed+test-time", core, learning=refining),
    )
    against = {method.name: "TI" for method in methods if method.name != "TI"}
    against |= {name: core.name for name in against if name.startswith(("TI+CoRe-", "TI+CoRe+"))}
    against |= {f"TI+CoRe-share-{share:g}": "TI" for share in SHARES}
    against[f"TI+CoRe-{MANY}-vectors"] = f"TI-{MANY}-vectors"
    return Technique(methods, against | {"failed-again": "TI+CoRe", "failed+test-time": "failed-again"}, many_factors)
