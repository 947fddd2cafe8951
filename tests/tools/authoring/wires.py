"""Leads wires around nodes, over reroute points, where the page would draw them beneath one."""
from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

STEP = 10  # of the grid on which ways are looked for
CLEAR = 25  # around nodes
STUB = 40  # straight out of an output and into an input
TURN = 90  # what a turn costs, in pixels of a longer way
SHARED = 6  # what a pixel on another output's way costs
ROOM = 12  # cells around all nodes
LONGEST_HANDLE = 80  # of the page's curves

Point = tuple[float, float]
Box = tuple[float, float, float, float]
PLACES = """() => { const {graph} = window.app, center = point => [point[0], point[1]];
    return {
        boxes: graph.nodes.map(node => { const [x, y, w, h] = node.boundingRect; return [x, y, x + w, y + h]; }),
        wires: [...graph.links.values()].map(link => ({id: link.id, source: `${link.origin_id} ${link.origin_slot}`,
            start: center(graph.getNodeById(link.origin_id).getOutputPos(link.origin_slot)),
            end: center(graph.getNodeById(link.target_id).getInputPos(link.target_slot))}))};
}"""


def led_around(document: dict, places: dict) -> dict:
    """The workflow, with reroute points for wires that would run beneath a node. places: what PLACES gives."""
    boxes = [tuple(box) for box in places["boxes"]]
    taken: dict[tuple[int, int], str] = {}
    reroutes: list[dict] = []
    ends: list[dict] = []
    known: dict[tuple, dict] = {}
    for wire in sorted(places["wires"], key=lambda wire: math.dist(wire["start"], wire["end"])):
        start, end = tuple(wire["start"]), tuple(wire["end"])
        if not hidden(curve(start, (_handle(start, end), 0), end, (-_handle(start, end), 0)), boxes):
            continue
        way = _way(start, end, boxes, taken, wire["source"])
        path = [wire["source"]]
        parent = None
        for point in way:
            path.append(point)
            if tuple(path) not in known:
                known[tuple(path)] = {"id": len(reroutes) + 1, "pos": list(point), "linkIds": [],
                                      **({"parentId": parent["id"]} if parent else {})}
                reroutes.append(known[tuple(path)])
            parent = known[tuple(path)]
            parent["linkIds"].append(wire["id"])
        if parent:
            ends.append({"id": wire["id"], "parentId": parent["id"]})
    document["extra"] = {**document.get("extra", {}), "reroutes": reroutes, "linkExtensions": ends}
    return document


def curve(start: Point, leaving: Point, end: Point, arriving: Point, parts: int = 60) -> list[Point]:
    """Points of a Bézier curve. leaving, arriving: its handles, from start and from end."""
    a, b = (start[0] + leaving[0], start[1] + leaving[1]), (end[0] + arriving[0], end[1] + arriving[1])
    found = []
    for number in range(parts + 1):
        t = number / parts
        weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t ** 3)
        found.append(tuple(sum(weight * point[axis] for weight, point in zip(weights, (start, a, b, end)))
                           for axis in (0, 1)))
    return found


def hidden(points: Iterable[Point], boxes: Sequence[Box], within: float = 20) -> bool:
    """Whether a point lies beneath a node, farther than `within` from its edge."""
    return any(left + within < x < right - within and top + within < y < bottom - within
               for x, y in points for left, top, right, bottom in boxes)


def _handle(start: Point, end: Point) -> float:
    return math.dist(start, end) * 0.25


def _way(start: Point, end: Point, boxes: Sequence[Box], taken: dict, source: str) -> list[Point]:
    """Corners of the cheapest way of straight lines between nodes."""
    first, last = _cell((start[0] + STUB, start[1])), _cell((end[0] - STUB, end[1]))
    edges = [_cell(corner) for box in boxes for corner in (box[:2], box[2:])]
    space = [(min(places) - ROOM, max(places) + ROOM) for places in zip(*edges)]
    cells = _cheapest(first, last, _blocked(boxes, (first, last)), space, taken, source)
    for cell in cells:
        taken.setdefault(cell, source)
    corners = [cells[0]]
    for before, cell, after in zip(cells, cells[1:], cells[2:]):
        if (cell[0] - before[0], cell[1] - before[1]) != (after[0] - cell[0], after[1] - cell[1]):
            corners.append(cell)
    corners.append(cells[-1])
    return [(x * STEP, y * STEP) for x, y in _without_short(corners)]


def _without_short(corners: list[tuple[int, int]]) -> list[tuple[int, int]]:
    kept = corners[:1]
    for corner in corners[1:]:
        if math.dist(kept[-1], corner) >= 3:
            kept.append(corner)
    return kept


def _cell(point: Point) -> tuple[int, int]:
    return round(point[0] / STEP), round(point[1] / STEP)


def _blocked(boxes: Sequence[Box], free: Iterable[tuple[int, int]]) -> set[tuple[int, int]]:
    found = set()
    for left, top, right, bottom in boxes:
        found |= {(x, y) for x in range(math.ceil((left - CLEAR) / STEP), math.floor((right + CLEAR) / STEP) + 1)
                  for y in range(math.ceil((top - CLEAR) / STEP), math.floor((bottom + CLEAR) / STEP) + 1)}
    return found - set(free)


def _cheapest(first: tuple[int, int], last: tuple[int, int], blocked: set, space: Sequence[tuple[int, int]],
              taken: dict, source: str) -> list[tuple[int, int]]:
    """A* over the grid; a state is a cell and the direction in which it was entered."""
    moves = ((1, 0), (-1, 0), (0, 1), (0, -1))
    best = defaultdict(lambda: math.inf)
    origin = (first, (1, 0))
    best[origin] = 0
    queue, before = [(0.0, 0, origin)], {}
    count = 0
    while queue:
        _, _, state = heapq.heappop(queue)
        cell, heading = state
        if cell == last:
            cells = [cell]
            while state in before:
                state = before[state]
                cells.append(state[0])
            return cells[::-1]
        for move in moves:
            after = (cell[0] + move[0], cell[1] + move[1])
            if after in blocked or move == (-heading[0], -heading[1]) or not all(
                    least <= place <= most for place, (least, most) in zip(after, space)):
                continue
            cost = best[state] + STEP + (TURN if move != heading else 0)
            cost += SHARED * STEP if taken.get(after, source) != source else 0
            cost += TURN if after == last and move != (1, 0) else 0
            if cost < best[after, move]:
                best[after, move] = cost
                before[after, move] = state
                count += 1
                guess = STEP * (abs(after[0] - last[0]) + abs(after[1] - last[1]))
                heapq.heappush(queue, (cost + guess, count, (after, move)))
    raise ValueError(f"there is no way from {first} to {last}")
