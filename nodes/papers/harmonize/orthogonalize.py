"""Eq. 3 on conditionings: which basis each gets, and what is said of it."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...visual_prompts.tokens import VisualTokens
from .orchestration import (
    Basis,
    BasisChoice,
    Entry,
    check_tokens,
    check_widths,
    join_bases,
    visual_positions,
    with_appended,
    with_replaced,
)


@dataclass(frozen=True)
class Orthogonalized:
    """conditioning: with the orthogonal tokens v⊥. tokens: v⊥ alone. report: what was done, to read. rank: the largest
    dimension of the text's subspace."""

    conditioning: list
    tokens: VisualTokens
    report: str
    rank: int


def orthogonalize(conditioning: Sequence[Entry], choice: BasisChoice, strength: float, last_tokens: int = 0,
                  tokens: VisualTokens | None = None, basis_from: Sequence[Entry] | None = None) -> Orthogonalized:
    """Takes `strength` of what the text says out of the visual tokens of every entry of a CONDITIONING.

    tokens: visual tokens to put after the text; None where the entries hold them, the last `last_tokens` of each or, if
    that is 0, those it knows of. basis_from: the text to orthogonalize to in place of each entry's own.
    Raises ValueError if tokens and conditioning do not fit each other.
    """
    for entry in (*conditioning, *(basis_from or ())):
        check_tokens(entry)
    shared = join_bases([choice.of(entry, visual_positions(entry, 0)) for entry in basis_from]) if basis_from else None
    made, seen, bases, lines = [], [], [], []
    for entry in conditioning:
        positions = visual_positions(entry, last_tokens)
        visual = _visual(entry, positions, tokens)
        basis = shared or choice.of(entry, positions)
        orthogonal = basis.orthogonalised(visual.vectors, strength)
        if tokens is not None:
            made.append(with_appended(entry, orthogonal))
        else:
            unchanged = orthogonal is visual.vectors
            made.append(entry if unchanged else with_replaced(entry, positions, orthogonal))
        seen.append(visual)
        bases.append(basis)
        lines.append(_report(basis, basis.share(visual.vectors), strength))
    of_all = join_bases(bases) if tokens is not None else bases[0]
    alone = replace(seen[0], vectors=of_all.orthogonalised(seen[0].vectors, strength).float().cpu())
    report = "\n".join(lines if len(lines) == 1 else [f"{i}. {line}" for i, line in enumerate(lines, 1)])
    return Orthogonalized(made, alone, report, max(basis.rank for basis in bases))


def _visual(entry: Entry, positions: Sequence[int], tokens: VisualTokens | None) -> VisualTokens:
    if tokens is not None:
        check_widths(tokens, entry)
        return tokens
    if not positions:
        raise ValueError("The conditioning holds no visual tokens; connect visual_tokens, or say in last_tokens how "
                         "many of its last tokens are visual.")
    return VisualTokens(entry[0][:, list(positions)], "a conditioning")


def _report(basis: Basis, share: float, strength: float) -> str:
    tokens = basis.tokens
    if not basis.rank:
        lines = ["No word is left to orthogonalize to, so the visual tokens are unchanged."]
    else:
        lines = [(f"Rank {basis.rank} of width {basis.rows[0].shape[1]}; it holds {share:.1%} of the picture's tokens, "
                  f"of which {strength:.0%} is taken out.")]
    if basis.rank == basis.rows[0].shape[1]:
        lines.append("The text spans the whole space: of the picture nothing is left. Write less, or choose fewer "
                     "tokens at basis.")
    if tokens is None:
        return " ".join([*lines, "All tokens of the text."])
    lines.append(f"Words: {' '.join(tokens.used) or 'none'}.")
    if tokens.excluded:
        lines.append(f"Left out: {' '.join(tokens.excluded)}.")
    if tokens.repetitions > 1:
        lines.append(f"The prompt is repeated {tokens.repetitions} times; it counts once.")
    if tokens.absent:
        lines.append(f"Not in the prompt: {', '.join(tokens.absent)}.")
    return " ".join(lines)
