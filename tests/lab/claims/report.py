"""Cells to a table, claim lines and figures."""
from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from miniature.intervals import CLAIM_SUBJECTS, Interval, interval

from .judging import MEASURES
from .store import Cell
from .technique import Technique

Cells = Mapping[tuple[str, str, int], Cell]  # (method, subject, seed)
Kinds = Mapping[str, Mapping[int, str]]  # subject -> number of the template -> kind of prompt
BySubject = Mapping[str, Mapping[tuple[int, int], float]]  # subject -> (seed, number of the template) -> value
MINUS = "-minus-"  # in the name of a difference
BY_KIND = ("text", "identity")  # measures that are shown for every kind of prompt too


@dataclass(frozen=True)
class Result:
    """A mean over subjects; interval: None below twelve of them, which carry no claim."""

    method: str
    measure: str
    mean: float
    subjects: int
    interval: Interval | None

    def line(self, technique: str) -> str:
        """"claim core TI text 0.91 0.87 0.94", or "mean …" where it is no claim."""
        start = f"{technique} {self.method} {self.measure}"
        return f"claim {start} {self.interval}" if self.interval else f"mean {start} {self.mean:.2f}"


def values_of(cells: Cells, method: str, measure: str) -> BySubject:
    """All values of a method's pictures."""
    found: dict[str, dict[tuple[int, int], float]] = {}
    for (name, subject, seed), cell in cells.items():
        if name == method:
            for number, values in cell.verdict.items():
                if measure in values:
                    found.setdefault(subject, {})[seed, number] = values[measure]
    return found


def differences(one: BySubject, other: BySubject) -> BySubject:
    """`one` minus `other` for the pictures that both have: same subject, seed, prompt and noise."""
    paired = {subject: {place: one[subject][place] - other[subject][place]
                        for place in one[subject].keys() & other[subject].keys()}
              for subject in one.keys() & other.keys()}
    return {subject: values for subject, values in paired.items() if values}


def results(technique: Technique, cells: Cells) -> Iterator[Result]:
    """Every method's means, then its differences to the method it is compared with."""
    for method in technique.methods:
        for measure in MEASURES:
            yield from _result(method.name, measure, values_of(cells, method.name, measure))
    for name, other in technique.against.items():
        for measure in MEASURES:
            paired = differences(values_of(cells, name, measure), values_of(cells, other, measure))
            yield from _result(f"{name}{MINUS}{other}", measure, paired)


def results_by_kind(technique: Technique, cells: Cells, kinds: Kinds) -> Iterator[Result]:
    """Every method's means over the prompts of one kind, as measures "text_place", "identity_style", …"""
    for method in technique.methods:
        for measure in BY_KIND:
            values = values_of(cells, method.name, measure)
            for kind in sorted({kind for numbered in kinds.values() for kind in numbered.values()}):
                chosen = {subject: {place: value for place, value in at.items() if kinds[subject].get(place[1]) == kind}
                          for subject, at in values.items()}
                yield from _result(method.name, f"{measure}_{kind}", {s: at for s, at in chosen.items() if at})


def _result(name: str, measure: str, values: BySubject) -> Iterator[Result]:
    if values:
        by_subject = {subject: [at[place] for place in sorted(at)] for subject, at in values.items()}
        mean = statistics.fmean(statistics.fmean(at) for at in by_subject.values())
        ends = interval(by_subject) if len(by_subject) >= CLAIM_SUBJECTS else None
        yield Result(name, measure, mean, len(by_subject), ends)


def table(found: Sequence[Result]) -> str:
    """Methods by measures, "0.91 (0.87 to 0.94)"; a difference whose sign is sure "**0.08** (0.02 to 0.14)"."""
    measures = list(dict.fromkeys(result.measure for result in found))
    shown = {(result.method, result.measure): _shown(result) for result in found}
    rows = [["", *measures]] + [[method, *(shown.get((method, measure), "") for measure in measures)]
                                for method in dict.fromkeys(result.method for result in found)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows)


def _shown(result: Result) -> str:
    mean = f"{result.mean:.2f}"
    if result.interval is None:
        return mean
    sure = MINUS in result.method and result.interval.excludes_zero
    ends = f"({result.interval.low:.2f} to {result.interval.high:.2f})"
    return f"**{mean}** {ends}" if sure else f"{mean} {ends}"


def _compared(found: Sequence[Result]) -> list[str]:
    """How many differences a table holds, and how many of them would be bold by chance."""
    differences = [result for result in found if MINUS in result.method and result.interval]
    if not differences:
        return []
    sure = sum(one.interval.excludes_zero for one in differences)
    by_chance = len(differences) / 20
    return [f"{len(differences)} differences; intervals of {by_chance:.1f} leave out zero by chance, here of {sure}."]


def figures(technique: str, cells: Cells) -> Iterator[str]:
    """"figure core TI seconds 61.2 (55.0 to 70.3 in 8 cells)" for all that was noted beside the pictures."""
    by_method: dict[str, dict[str, list[float]]] = {}
    for (method, _, _), cell in cells.items():
        for name, value in cell.drawn.figures.items():
            by_method.setdefault(method, {}).setdefault(name, []).append(value)
    for method, named in by_method.items():
        for name, values in named.items():
            yield (f"figure {technique} {method} {name} {statistics.fmean(values):.3g} "
                   f"({min(values):.3g} to {max(values):.3g} in {len(values)} cells)")


def text(name: str, technique: Technique, cells: Cells, kinds: Kinds) -> str:
    """The whole report."""
    found, by_kind = list(results(technique, cells)), list(results_by_kind(technique, cells, kinds))
    few = [] if any(result.interval for result in found) else [
        f"Fewer than {CLAIM_SUBJECTS} subjects carry no claim: these are means."]
    lines = (result.line(name) for result in (*found, *by_kind))
    return "\n".join([table(found), *few, *_compared(found), table(by_kind), *lines, *figures(name, cells)])
