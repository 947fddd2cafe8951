"""Two runs that take turns, such as one sampler for two pictures: one works while the other waits, and each remembers
things of its own."""
from __future__ import annotations

import contextlib
import contextvars
import copy
import functools
import random
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from threading import Thread
from types import CellType
from typing import Any, Generic, TypeVar

import torch

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
Result = TypeVar("Result")
_DEVICES_OF_THREADS = ("cuda", "xpu")


class _Closed(BaseException):
    """Ends a function whose answers nobody waits for any more."""


class TakingTurns(Generic[Asked, Answer, Result]):
    """A function that runs beside its owner, but only while the owner waits in `question` or `answer`; for functions
    that cannot be written as generators.

    function: gets `ask`, which hands a question to the owner and returns the owner's answer.
    result: what it has returned.
    """

    def __init__(self, function: Callable[[Callable[[Asked], Answer]], Result], device: torch.device):
        self.result: Result | None = None
        self._asked: Asked | None = None
        self._begun = self._ended = False
        self._function, self._device = function, device
        self._to_owner: SimpleQueue = SimpleQueue()
        self._to_function: SimpleQueue = SimpleQueue()
        self._thread = Thread(target=contextvars.copy_context().run, daemon=True, args=(
            self._work, torch.is_inference_mode_enabled(), torch.is_grad_enabled()))

    def question(self) -> Asked | None:
        """What it waits to be told; None once it has ended. Raises what it raises."""
        if not self._begun:
            self._begun = True
            self._thread.start()
            self._wait()
        return self._asked

    def answer(self, answer: Answer) -> None:
        """Tells it, and lets it run until it asks again or ends. Raises what it raises."""
        self._to_function.put(lambda: answer)
        self._wait()

    def close(self) -> None:
        """Ends it where it waits."""
        if self._begun and not self._ended:
            self._asked, self._ended = None, True
            self._to_function.put(_close)
        if self._begun:
            self._thread.join()

    def _wait(self) -> None:
        self._asked, outcome = None, self._to_owner.get()
        outcome()

    def _work(self, inference: bool, gradients: bool) -> None:
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients), _on_device(self._device):
            try:
                outcome = functools.partial(self._end, self._function(self._ask))
            except _Closed:
                return
            except BaseException as error:  # it is the owner's to handle
                outcome = functools.partial(self._fail, error)
            self._to_owner.put(outcome)

    def _ask(self, question: Asked) -> Answer:
        self._to_owner.put(functools.partial(setattr, self, "_asked", question))
        return self._to_function.get()()

    def _end(self, result: Result) -> None:
        self.result, self._ended = result, True

    def _fail(self, error: BaseException) -> None:
        self._ended = True
        raise error


def _close() -> None:
    raise _Closed


def _on_device(device: torch.device) -> contextlib.AbstractContextManager:
    """Makes it a thread's current device, where threads have one."""
    if device.type in _DEVICES_OF_THREADS:
        return torch.get_device_module(device).device(device)
    return contextlib.nullcontext()


class OwnMemory:
    """What a run remembers outside its arguments, kept apart from that of another run which it takes turns with: states
    of the random generators, and what its functions keep from step to step, such as a running average.

    options: nested dicts and lists that hold the functions. A function keeps things in variables around it, in its own
    attributes or those of the object that it belongs to, and in objects of its package that these variables hold.
    """

    def __init__(self, device: torch.device, options: Any):
        self._device = device
        self._cells: dict[int, CellType] = {}
        self._attributes: dict[int, dict] = {}
        for function in _functions(options):
            self._find(function)
        states, cells, attributes = self._read()
        self._own = states, [_copied(content) for content in cells], [
            {name: _copied(value) for name, value in each.items()} for each in attributes]

    @contextlib.contextmanager
    def recalled(self) -> Iterator[None]:
        """While it is open everything is as this run left it; after it, as the other did."""
        others = self._read()
        self._write(self._own)
        try:
            yield
        finally:
            self._own = self._read()
            self._write(others)

    def _find(self, function: Callable) -> None:
        if isinstance(function, functools.partial):
            self._find(function.func)
            return
        cells = [cell for cell in getattr(function, "__closure__", None) or () if _is_set(cell)]
        self._cells.update((id(cell), cell) for cell in cells)
        owner = getattr(function, "__self__", function)
        for each in (owner, *(cell.cell_contents for cell in cells)):
            if _package(each) == _package(function) != "comfy" and isinstance(getattr(each, "__dict__", None), dict):
                self._attributes[id(each)] = vars(each)

    def _read(self) -> tuple[tuple, list, list[dict]]:
        return (_random_states(self._device), [cell.cell_contents for cell in self._cells.values()],
                [dict(each) for each in self._attributes.values()])

    def _write(self, memory: tuple[tuple, list, list[dict]]) -> None:
        states, cells, attributes = memory
        _set_random_states(self._device, states)
        for cell, content in zip(self._cells.values(), cells, strict=True):
            cell.cell_contents = content
        for each, content in zip(self._attributes.values(), attributes, strict=True):
            each.update(content)
            for name in each.keys() - content.keys():
                del each[name]


def _functions(options: Any) -> Iterator[Callable]:
    if isinstance(options, dict):
        options = list(options.values())
    if isinstance(options, (list, tuple)):
        for each in options:
            yield from _functions(each)
    elif callable(options) and not isinstance(options, (type, torch.nn.Module)):
        yield options


def _is_set(cell: CellType) -> bool:
    try:
        return cell.cell_contents is cell.cell_contents
    except ValueError:
        return False


def _package(thing: Any) -> str:
    """Of a function or an object's class; none of a module of a network, whose weights all runs share."""
    if isinstance(thing, torch.nn.Module):
        return ""
    return str(getattr(thing, "__module__", "")).partition(".")[0]


def _copied(value: Any) -> Any:
    return copy.copy(value) if isinstance(value, (dict, list, set)) else value


def _random_states(device: torch.device) -> tuple:
    states = random.getstate(), torch.get_rng_state()
    if device.type in _DEVICES_OF_THREADS:
        return *states, torch.get_device_module(device).get_rng_state(device)
    return (*states, torch.mps.get_rng_state()) if device.type == "mps" else states


def _set_random_states(device: torch.device, states: tuple) -> None:
    python, processor, *of_device = states
    random.setstate(python)
    torch.set_rng_state(processor)
    if device.type in _DEVICES_OF_THREADS:
        torch.get_device_module(device).set_rng_state(*of_device, device)
    elif of_device:
        torch.mps.set_rng_state(*of_device)
