"""From requests to results: encodes, runs the denoiser, records attention, and sends every gradient back.

The gradients of a step meet at the text encodings. Each encoding that needs gradients is computed once and cut off as a
leaf; loss terms go backward one after the other, each freeing its own pass of the denoiser before the next one runs, so
that the peak memory is that of the largest term; last, one backward pass through the text encoder takes the leaves'
gradients to the trainable vectors.
"""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..recording.pass_recorder import AttentionRecorder, PassStopped, Wanted
from ..text.encode import Encoded, encode_together, joined
from ..text.layered import layers_beside
from ..text.tokens import PromptTokens
from ..text.vectors import Vectors, WordVectors, mean_of
from .batch import Batch
from .checkpointing import gradient_checkpointing
from .denoiser import denoise
from .encoding_cache import EncodingCache
from .gradient_norms import GradientNorms
from .interfaces import DenoiserSide, Encode, LossTerm, Maps, Needs, Pass, Results, TextSide
from .parts.part import AttachedPart, RunningPass
from .seeds import generator
from .session import Session


@dataclass
class Leaf:
    """An encoding with gradient and its stand-in, at which the loss terms' gradients gather."""

    encoded: Encoded
    stand_in: Encoded

    def tensors(self) -> list[tuple[Tensor, Tensor]]:
        """Pairs (output of the text encoder, leaf)."""
        pairs = [(self.encoded.cond, self.stand_in.cond)]
        if self.encoded.pooled is not None and self.encoded.pooled.requires_grad:
            pairs.append((self.encoded.pooled, self.stand_in.pooled))
        return pairs  # ty: ignore[invalid-explicit-return]


class Objective:
    """The weighted sum of the loss terms on one session, and its gradients.

    frozen: vectors (n, d) of concepts that no part trains, by placeholder.
    checkpointing: recompute the U-Net's blocks in the backward pass.
    """

    def __init__(self, session: Session, parts: Sequence[AttachedPart], terms: Sequence[LossTerm], text: TextSide,
                 frozen: Vectors, seed: int, checkpointing: bool):
        self.session, self.parts, self.terms, self.text = session, parts, terms, text
        self.frozen, self.seed, self.checkpointing = frozen, seed, checkpointing
        self._constant = EncodingCache()

    def active(self, batch: Batch) -> list[LossTerm]:
        """Terms whose window holds the batch's step and whose stream has rows in it."""
        return [term for term in self.terms
                if term.window[0] <= batch.step <= term.window[1] and batch.rows.get(term.stream)]

    def backward(self, batch: Batch) -> dict[str, float]:
        """Adds the gradients of Σ weight · share · term to the parameters' .grad; returns term → value with both.

        share: how many of the step's rows of the term's stream the batch has.
        """
        work, asked = _Work(self, batch), self._ask(batch)
        work.encode_trained([one.needs for one in asked])
        values = self._backward_terms(asked, work, batch,
                                      lambda losses: torch.stack([loss for _, loss in losses]).sum().backward())
        work.backward_text()
        return values

    def backward_alone(self, batch: Batch, norms: GradientNorms) -> dict[str, float]:
        """The same with each term going back alone, so that `norms` learns its own gradients; takes up to twice as
        long."""
        work = _Work(self, batch)

        def go_back(losses: Sequence[tuple[str, Tensor]]) -> None:
            outputs, leaves = work.leaf_pairs()
            for i, (name, loss) in enumerate(losses):
                gradients = torch.autograd.grad(loss, leaves + norms.unet_parameters, allow_unused=True,
                                                retain_graph=i + 1 < len(losses))
                norms.add(name, outputs, gradients[:len(leaves)], gradients[len(leaves):])

        return self._backward_terms(self._ask(batch), work, batch, go_back)

    @torch.no_grad()
    def original(self, batch: Batch, prompt: str) -> tuple[Tensor, Tensor]:
        """The encoding (1, T, C) of a prompt without learned words, and what the denoiser predicts with it, both
        without the trainable parts."""
        request = Encode((self.text.tokenizer(prompt),), grad=False, original=True)
        work = _Work(self, batch)
        return work.encoded(request).cond, work.run(Pass(request, grad=False, original=True), ())[0]  # ty: ignore[invalid-explicit-return]

    def _ask(self, batch: Batch) -> list[_Asked]:
        return [_Asked(term, term.needs(batch, self.text, generator(self.seed, "loss", batch.step)))
                for term in self.active(batch)]

    def _backward_terms(self, asked: Sequence[_Asked], work: _Work, batch: Batch,
                        go_back: Callable[[Sequence[tuple[str, Tensor]]], None]) -> dict[str, float]:
        """Hands `go_back` the weighted losses, by name, of terms that share a pass, before the next pass runs."""
        values: dict[str, float] = {}
        for together in _sharing_a_pass(asked):
            losses = [(one.term.name, self._weighted_loss(one, together, work, batch)) for one in together]
            for name, loss in losses:
                values[name] = values.get(name, 0.0) + loss.item()
            with_graph = [(name, loss) for name, loss in losses if loss.requires_grad]
            if with_graph:
                go_back(with_graph)
            work.free_graphs()
        return values

    def _weighted_loss(self, asked: _Asked, together: Sequence[_Asked], work: _Work, batch: Batch) -> Tensor:
        term = asked.term
        loss = term(work.results(asked.needs, together), batch, DenoiserSide(self.session.noise))
        return term.weight * batch.shares[term.stream] * loss


@dataclass(frozen=True, eq=False)
class _Asked:
    """A loss term and what it needs in this step."""

    term: LossTerm
    needs: Needs


class _Work:
    """Results of one micro-batch, each computed when it is first asked for."""

    def __init__(self, objective: Objective, batch: Batch):
        self.objective, self.batch = objective, batch
        self.leaves: dict[Encode, Leaf] = {}
        self.fixed: dict[Encode, Encoded] = {}
        self.passes: dict[Pass, tuple[Tensor | None, dict[Maps, tuple[Tensor, ...]]]] = {}
        learned = {name: rows for part in objective.parts for name, rows in part.vectors(batch).items()}
        self.vectors = {**objective.frozen, **learned}
        self.trained_placeholders = frozenset(learned)
        self.layers = len(objective.text.layers)
        self.drawn_layer = int(torch.randint(self.layers, (), generator=generator(objective.seed, "layer", batch.step)))
        self._of_layer: dict[tuple[str, int], WordVectors] = {}

    def results(self, needs: Needs, together: Sequence[_Asked]) -> Results:
        """What one term asked for; the passes it shares record the maps of all terms that share them."""
        recorded = [maps for asked in together for maps in asked.needs.maps.values()]
        encodes = {name: self.encoded(self._at_one_layer(request)) for name, request in needs.encodes.items()}
        passes = {name: self.run(request, recorded)[0] for name, request in needs.passes.items()}
        maps = {name: self.run(request.of, recorded)[1][request] for name, request in needs.maps.items()}
        return Results(encodes, passes, maps)

    def encode_trained(self, needs: Sequence[Needs]) -> None:
        """Encodes everything that needs gradients, all prompts together: the fastest way there and back, but not where
        each term goes back alone and most prompts are not its own."""
        self._add_leaves(list(dict.fromkeys(replace(request, grad=True) for one in needs
                                            for request in self._encodes(one) if self._needs_gradient(request))))

    def encoded(self, request: Encode) -> Encoded:
        if not self._needs_gradient(request):
            return self._without_gradient(request)
        key = replace(request, grad=True)
        if key not in self.leaves:
            self._add_leaves([key])
        return self.leaves[key].stand_in

    def run(self, request: Pass, recorded: Sequence[Maps]) -> tuple[Tensor | None, dict[Maps, tuple[Tensor, ...]]]:
        if request not in self.passes:
            maps = list(dict.fromkeys(m for m in recorded if m.of == request))
            with contextlib.nullcontext() if request.grad else torch.no_grad():
                self.passes[request] = self._run(request, maps)
        return self.passes[request]

    def free_graphs(self) -> None:
        """Forgets results that hold a graph: their terms have gone backward."""
        self.passes = {request: done for request, done in self.passes.items() if not request.grad}

    def leaf_pairs(self) -> tuple[list[Tensor], list[Tensor]]:
        """Outputs of the text encoder and, in the same order, the leaves that stand in for them."""
        pairs = [pair for leaf in self.leaves.values() for pair in leaf.tensors()]
        return [output for output, _ in pairs], [leaf for _, leaf in pairs]

    def backward_text(self) -> None:
        """Takes the gradients gathered at the leaves through the text encoder to the parameters."""
        pairs = [(output, leaf.grad) for output, leaf in zip(*self.leaf_pairs(), strict=True)
                 if leaf.grad is not None and output.requires_grad]
        if pairs:
            torch.autograd.backward([output for output, _ in pairs], [gradient for _, gradient in pairs])

    def context(self, request: Encode) -> tuple[Encoded, Tensor | None]:
        """What the denoiser is given; and where words have vectors for each cross-attention layer, (rows, T, L·C), what
        the layers read in place of it, which then is the mean of that."""
        if not self._is_layered(request):
            return self.encoded(request), None
        parts = [self.encoded(one) for one in self._at_every_layer(request)]
        contexts, pooled = [part.cond for part in parts], [part.pooled for part in parts if part.pooled is not None]
        mean = replace(parts[0], cond=mean_of(contexts).detach(), pooled=mean_of(pooled) if pooled else None)
        return mean, layers_beside(contexts)

    def _is_layered(self, request: Encode) -> bool:
        return request.layer is None and any(self.vectors[name].axis == "layer" for tokens in request.tokens
                                             for name in tokens.placeholders)

    def _at_one_layer(self, request: Encode) -> Encode:
        return replace(request, layer=self.drawn_layer) if self._is_layered(request) else request

    def _at_every_layer(self, request: Encode) -> list[Encode]:
        if not self._is_layered(request):
            return [request]
        return [replace(request, layer=layer) for layer in range(self.layers)]

    def _encodes(self, needs: Needs) -> Iterator[Encode]:
        """Every encoding that a term's requests lead to."""
        yield from map(self._at_one_layer, needs.encodes.values())
        passes = [*needs.passes.values(), *(maps.of for maps in needs.maps.values())]
        keys = [maps.keys for maps in needs.maps.values() if maps.keys is not None]
        for request in (*(one.context for one in passes), *keys):
            yield from self._at_every_layer(request)

    def _needs_gradient(self, request: Encode) -> bool:
        return request.grad and not request.original and self._is_trained(request)

    def _is_trained(self, request: Encode) -> bool:
        if any("text" in part.touches and not part.vectors(self.batch) for part in self.objective.parts):
            return True
        return any(tokens.placeholders & self.trained_placeholders for tokens in request.tokens)

    def _add_leaves(self, requests: Sequence[Encode]) -> None:
        for request, encoded in zip(requests, self._encode(requests), strict=True):
            pooled = encoded.pooled
            if pooled is not None:
                pooled = pooled.detach().requires_grad_(pooled.requires_grad)
            self.leaves[request] = Leaf(encoded, replace(
                encoded, cond=encoded.cond.detach().requires_grad_(), pooled=pooled))

    def _without_gradient(self, request: Encode) -> Encoded:
        request = replace(request, grad=False)
        if request.original or not self._is_trained(request):
            return joined(self.objective._constant.get(_one_by_one(request), self._encode_without_gradient))
        if request not in self.fixed:
            self.fixed[request] = self._encode_without_gradient([request])[0]
        return self.fixed[request]

    def _encode_without_gradient(self, requests: Sequence[Encode]) -> list[Encoded]:
        with torch.no_grad(), self._bypassing(requests[0].original):
            return self._encode(requests)

    def _encode(self, requests: Sequence[Encode]) -> list[Encoded]:
        asked = [(tokens, [self._row_vectors(row, request.layer) for row in range(len(tokens))])
                 for request, tokens in ((request, self._prompts(request)) for request in requests)]
        return encode_together(self.objective.session.clip, asked)

    def _prompts(self, request: Encode) -> tuple[PromptTokens, ...]:
        """The request's prompts, one per row where rows have vectors of their own."""
        per_row = any(self.vectors[name].axis == "row" for tokens in request.tokens for name in tokens.placeholders)
        return request.tokens * self.batch.size if per_row and len(request.tokens) == 1 else request.tokens

    def _row_vectors(self, row: int, layer: int | None) -> Vectors:
        """What words mean in a row and to a layer. Those with a vector for each row of the subject mean nothing in
        other streams' rows beyond these."""
        found = {}
        for name, vectors in self.vectors.items():
            if vectors.axis == "layer":
                found[name] = self._vectors_of_layer(name, self.drawn_layer if layer is None else layer)
            elif vectors.axis is None:
                found[name] = vectors
            elif row < self.batch.size:
                found[name] = vectors.at(row)
        return found

    def _vectors_of_layer(self, name: str, layer: int) -> WordVectors:
        """The same object each time, as prompts with the same vectors are encoded once."""
        if (name, layer) not in self._of_layer:
            self._of_layer[name, layer] = self.vectors[name].at(layer)
        return self._of_layer[name, layer]

    def _run(self, request: Pass, maps: Sequence[Maps]) -> tuple[Tensor | None, dict[Maps, tuple[Tensor, ...]]]:
        session, latents = self.objective.session, self.batch.latents[request.latents]
        rows = len(latents.sigma)
        context, by_layer = self.context(request.context)
        context = context.expand(rows)
        wanted = [Wanted(m.layers, m.keep, m.positions, *self._keys(m), m.beside) for m in maps]
        predicted = None
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._bypassing(request.original))
            if self.objective.checkpointing and request.grad:
                stack.enter_context(gradient_checkpointing(session.family.recomputable(except_for=request.until)))
            recorder = stack.enter_context(AttentionRecorder(session.family, wanted, request.until))
            with contextlib.suppress(PassStopped):
                predicted = denoise(session, latents.noisy, latents.sigma, context,
                                    RunningPass(self.batch, request.latents, context.tokens),
                                    None if by_layer is None else by_layer.expand(rows, -1, -1))
        return predicted, dict(zip(maps, recorder.maps, strict=True))

    def _keys(self, maps: Maps) -> tuple[Tensor | None, bool]:
        """Of another encoding for the maps, and whether each layer has keys of its own."""
        if maps.keys is None:
            return None, False
        context, by_layer = self.context(maps.keys)
        return (context.cond if by_layer is None else by_layer).to(self.objective.session.device), by_layer is not None

    def _bypassing(self, original: bool) -> contextlib.AbstractContextManager:
        stack = contextlib.ExitStack()
        for part in self.objective.parts if original else ():
            stack.enter_context(part.bypassed())
        return stack


def _one_by_one(request: Encode) -> list[Encode]:
    """A request for each of the prompts."""
    return [replace(request, tokens=(tokens,)) for tokens in request.tokens]


def _sharing_a_pass(asked: Sequence[_Asked]) -> Iterator[list[_Asked]]:
    """Groups terms whose losses hang on the same differentiable pass and so must go backward together."""
    groups: list[tuple[set[Pass], list[_Asked]]] = []
    for one in asked:
        wanted = {*one.needs.passes.values(), *(maps.of for maps in one.needs.maps.values())}
        passes, members = {p for p in wanted if p.grad}, [one]
        for other in [g for g in groups if g[0] & passes]:
            groups.remove(other)
            passes, members = passes | other[0], other[1] + members
        groups.append((passes, members))
    yield from (members for _, members in groups)
