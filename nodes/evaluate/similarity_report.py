"""What *Context Similarity* has found, to read."""
from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from .comparing import Compared


def means(found: Sequence[Compared]) -> tuple[float, float, float | None]:
    """sim₁, sim₂ and SKL over all prompts; SKL is None where no picture was looked at."""
    looked = [each.divergence for each in found if each.divergence is not None]
    return (fmean(each.to_concept for each in found), fmean(each.to_itself for each in found),
            fmean(looked) if looked else None)


def report(found: Sequence[Compared], class_words: str) -> str:
    """The numbers of Table 1, then the cosines of CoRe's Figure 2: those of the first prompt word by word, and the mean
    over all prompts."""
    placeholder, *_ = found[0].cosines
    to_concept, to_itself, divergence = means(found)
    lines = [f"{placeholder} in {len(found)} prompt{'s' if len(found) > 1 else ''}",
             f"sim1 {to_concept:.4f}  the word and its context, lower is better",
             f"sim2 {to_itself:.4f}  the context with the word and without it, higher is better"]
    if divergence is not None:
        lines.append(f"SKL  {divergence:.4f}  attention to the word and to its context, higher is better")
    first = found[0]
    width = max(len(word) for word in (*first.cosines, class_words))
    columns = [max(5, len(word)) for word in first.words]
    lines += ["", f"Context beside {class_words} and beside …, cosine; first prompt: {first.template}",
              "  ".join([" " * width, *(f"{word:>{size}}" for word, size in zip(first.words, columns)), "all prompts"])]
    for word, row in first.cosines.items():
        overall = fmean(fmean(each.cosines[word]) for each in found)
        cells = [f"{cosine:>{size}.2f}" for cosine, size in zip(row, columns)]
        lines.append("  ".join([f"{word:<{width}}", *cells, f"{overall:>11.4f}"]))
    return "\n".join(lines)


def table(found: Sequence[Compared]) -> str:
    """A line for each prompt with a heading, columns separated by tabs."""
    names = list(found[0].cosines)
    lines = ["\t".join(["prompt", "sim1", "sim2", "skl", *names])]
    for each in found:
        divergence = "" if each.divergence is None else f"{each.divergence:.6f}"
        cosines = [f"{fmean(each.cosines[name]):.6f}" for name in names]
        lines.append("\t".join([each.template, f"{each.to_concept:.6f}", f"{each.to_itself:.6f}", divergence,
                                *cosines]))
    return "\n".join(lines)
