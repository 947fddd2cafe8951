"""Words of poses and backgrounds as something that Train optimises."""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...text.concept import Concept, initial_vectors
from ...text.concept_files import concept_metadata
from ...text.embedding_files import KIND as EMBEDDINGS
from ...text.embedding_files import file_stem
from ...text.vectors import Vectors, WordVectors
from ...training.batch import Batch, Picture, Subject
from ...training.parts.part import Artifact, AttachedPart, ParamGroup, Side, TrainablePart, TrainingRun
from ...training.restoring import matching
from ...training.seeds import generator
from .files import FILE, FOLDER, LONGEST_THUMBNAIL, metadata_of, thumbnails
from .mapper import AttributeMapper
from .seeing import image_features
from .words import ATTRIBUTES, BACKGROUND, POSE, attribute_word

LONGEST_SEEN = 1024  # pixels of a picture that the image encoder is shown

Number = tuple[int, int]  # of a subject, and of one of its pictures


@dataclass(frozen=True)
class AttributesPart(TrainablePart):
    """Optimises for every picture of every subject a word for its pose and one for its background.

    clip_vision: image encoder E of Eq. 3. vision: its digest. mapped: words are made by one mapper for each attribute;
    else they are vectors of their own. pose_is: the word at which those of poses begin. lr: learning rate (DETEX 1e-5).
    """

    clip_vision: Any
    vision: str
    mapped: bool = True
    pose_is: str = POSE
    lr: float = 1e-5
    weight_decay: float | None = None
    keeps: ClassVar = ((FOLDER, FILE),)
    NOT_IN_KEY = ("clip_vision",)

    @property
    def label(self) -> str:
        """For the name of a run."""
        return "detex"

    def attach(self, run: TrainingRun) -> AttachedAttributes:
        """Words that begin near "pose" and "background". Raises ValueError if there is no image encoder."""
        numbers = [(which, picture) for which, subject in enumerate(run.subjects)
                   for picture in range(len(subject.pictures))]
        starts = {attribute: initial_vectors(_concept(word), run.clip)
                  for attribute, word in ((POSE, self.pose_is), (BACKGROUND, BACKGROUND))}
        if not self.mapped:
            return AttachedVectors(self, run, numbers, starts)
        with torch.no_grad():
            seen = torch.cat([image_features(self.clip_vision, _photograph(run.subjects, number))
                              for number in numbers])
        return AttachedMappers(self, run, numbers, starts, seen)


class AttachedAttributes(AttachedPart):
    """The words of one run. `_words` says what they mean, `_named` which parameters that comes from."""

    touches: frozenset[Side] = frozenset({"text"})

    def __init__(self, settings: AttributesPart, run: TrainingRun, numbers: Sequence[Number]):
        self.settings, self.run, self.numbers = settings, run, numbers
        self.placeholders = {word: 1 for number in numbers for word in self._pair(number)}
        self._thumbnails = thumbnails(_photograph(run.subjects, number, LONGEST_THUMBNAIL)[0] for number in numbers)

    def vectors(self, batch: Batch) -> Vectors:
        """Those of the batch's pictures, (1, d)."""
        return self._words(dict.fromkeys((row.subject, row.picture) for row in batch.rows["subject"]))

    @torch.no_grad()
    def shown_vectors(self) -> Vectors:
        """Those of all pictures."""
        return self._words(self.numbers)

    def state_dict(self) -> dict[str, Tensor]:
        """Parameters by name."""
        return {name: p.detach() for name, p in self._named().items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state_dict` returned."""
        for name, p in self._named().items():
            p.copy_(matching(state, name, p.shape))

    def files(self) -> Sequence[Artifact]:
        """A stock embedding for every word, and what DETEX Encode Picture and DETEX Prompt read."""
        embeddings = [self._embedding(word, vectors) for word, vectors in self.shown_vectors().items()]
        return [*embeddings, Artifact(FOLDER, FILE, self._kept(), self._about(), whole=True)]

    def _words(self, numbers: Iterable[Number]) -> dict[str, WordVectors]:
        raise NotImplementedError

    def _named(self) -> dict[str, nn.Parameter]:
        raise NotImplementedError

    def _pair(self, number: Number) -> list[str]:
        which, picture = number
        placeholder = self.run.subjects[which].concept.placeholder
        return [attribute_word(placeholder, attribute, picture + 1) for attribute in ATTRIBUTES]

    def _embedding(self, word: str, vectors: WordVectors) -> Artifact:
        concept = _concept(word).with_vectors(vectors)
        return Artifact(EMBEDDINGS, file_stem(word), dict(concept.vectors), concept_metadata(concept), whole=True)

    def _kept(self) -> dict[str, Tensor]:
        return self._thumbnails

    def _about(self) -> dict[str, str]:
        subjects = [(subject.concept.placeholder, subject.concept.class_words, len(subject.pictures))
                    for subject in self.run.subjects]
        return metadata_of(subjects, self.settings.vision, self.settings.pose_is)


class AttachedMappers(AttachedAttributes):
    """Words that mappers make of what the image encoder sees (Eq. 3). features: (pictures, seen), in their order."""

    def __init__(self, settings: AttributesPart, run: TrainingRun, numbers: Sequence[Number],
                 starts: Mapping[str, WordVectors], features: Tensor):
        super().__init__(settings, run, numbers)
        self._place = {number: place for place, number in enumerate(numbers)}
        self._features = features.to(run.device)
        self.mappers = {attribute: {key: self._mapper(attribute, key, rows[0]) for key, rows in start.items()}
                        for attribute, start in starts.items()}
        self.groups: Sequence[ParamGroup] = [
            ParamGroup(f"{attribute} mapper", [p for mapper in mappers.values() for p in mapper.parameters()],
                       settings.lr, settings.weight_decay) for attribute, mappers in self.mappers.items()]

    def _mapper(self, attribute: str, key: str, word: Tensor) -> AttributeMapper:
        mapper = AttributeMapper(self._features.shape[1], len(word))
        return mapper.start_at(word, generator(self.run.seed, "mapper", attribute, key)).to(self.run.device)

    def _words(self, numbers: Iterable[Number]) -> dict[str, WordVectors]:
        numbers = list(numbers)
        seen = self._features[[self._place[number] for number in numbers]]
        made = [{key: mapper(seen) for key, mapper in self.mappers[attribute].items()} for attribute in ATTRIBUTES]
        return {word: WordVectors({key: rows[i:i + 1] for key, rows in vectors.items()})
                for i, number in enumerate(numbers) for word, vectors in zip(self._pair(number), made, strict=True)}

    def _named(self) -> dict[str, nn.Parameter]:
        return {f"{attribute}.{key}.{name}": p for attribute, mappers in self.mappers.items()
                for key, mapper in mappers.items() for name, p in mapper.named_parameters()}

    def _kept(self) -> dict[str, Tensor]:
        return {**super()._kept(), **self.state_dict()}


class AttachedVectors(AttachedAttributes):
    """Words with vectors of their own: the paper's ablation "without mapper"."""

    def __init__(self, settings: AttributesPart, run: TrainingRun, numbers: Sequence[Number],
                 starts: Mapping[str, WordVectors]):
        super().__init__(settings, run, numbers)
        self._vectors = {word: {key: nn.Parameter(rows.to(run.device, copy=True)) for key, rows in start.items()}
                         for number in numbers for word, start in zip(self._pair(number), starts.values(), strict=True)}
        self.groups: Sequence[ParamGroup] = [
            ParamGroup("attributes", list(self._named().values()), settings.lr, settings.weight_decay)]

    def _words(self, numbers: Iterable[Number]) -> dict[str, WordVectors]:
        return {word: WordVectors(self._vectors[word]) for number in numbers for word in self._pair(number)}

    def _named(self) -> dict[str, nn.Parameter]:
        return {f"{word}.{key}": p for word, vectors in self._vectors.items() for key, p in vectors.items()}


def _photograph(subjects: Sequence[Subject], number: Number, longest_side: int = LONGEST_SEEN) -> Tensor:
    """(1, H, W, 3) as it came, with its background."""
    picture: Picture = subjects[number[0]].pictures[number[1]]
    return picture.photograph(longest_side)[None]


def _concept(word: str) -> Concept:
    return Concept(word, "", word)
