"""What a training step costs: seconds in turn with its rivals, counted FLOPs, and bytes of tensors at its peak."""
from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

Step = Callable[[], object]


def seconds_in_turn(steps: Mapping[str, Step], rounds: int, warm_up: int = 2) -> dict[str, list[float]]:
    """CPU seconds of every step in every round, A, B, C, A, B, C …; each round starts with another one.

    A disturbance of the machine then meets all of them alike, and none always runs after the same other. With one
    thread CPU seconds are what a clock shows on an idle machine, and on a busy one they leave out the waiting.
    """
    names, seconds = list(steps), {name: [] for name in steps}
    for turn in range(warm_up + rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            started = time.process_time()
            steps[name]()
            if turn >= warm_up:
                seconds[name].append(time.process_time() - started)
    return seconds


def median_ratio(seconds: Mapping[str, list[float]], ours: str, theirs: str) -> float:
    """Median over the rounds of `ours` / `theirs` within one round."""
    return statistics.median(a / b for a, b in zip(seconds[ours], seconds[theirs], strict=True))


def flops(step: Step) -> int:
    """Floating-point operations of the matrix products, convolutions and attentions of one step, backward included.

    A multiplication with addition counts as two. What only moves or adds numbers (an optimiser, a norm) counts nothing.
    """
    with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
        step()
    return counter.get_total_flops()


def peak_bytes(step: Step) -> int:
    """Most bytes of CPU tensors that one step holds at once, beyond those that exist before it."""
    with recorded_bytes() as recorded:
        step()
    return recorded.peak


@dataclass
class Recorded:
    """peak: most bytes of CPU tensors held at once, beyond those from before."""

    peak: int = 0


@contextlib.contextmanager
def recorded_bytes() -> Iterator[Recorded]:
    """Counts while the context is open; the result is known after it."""
    recorded = Recorded()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield recorded
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        recorded.peak = max(recorded.peak, held)


def tensor_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of all tensors together."""
    return sum(tensor.nbytes for tensor in tensors)


def _attention(query, key, value, *_, out_shape=None, **__) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(gradient, query, key, value, *_, out_shape=None, **__) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


_CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
                  torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward}
