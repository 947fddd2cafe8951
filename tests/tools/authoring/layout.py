"""Lays a workflow out from left to right: every node stands right of what feeds it, and no wire runs beneath a node.

A group is a band of columns. An output whose wires pass a column has a lane in it, and Graphviz (the program `dot`)
finds the heights of nodes and lanes.
"""
from __future__ import annotations

import json
import random
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from .graph import TITLE, Group, Note, group_box, note_node

GUTTER = 140  # between columns
BETWEEN = 50  # between what stands in a column
MARGIN, HEADING = 30, 44  # of a group's box around its nodes
SLOPE = 0.2  # width of a gutter for each pixel that a wire rises or falls in it
BEND = 10  # how far beside a column a wire turns
STRAIGHT = 20  # a wire that rises or falls less needs no point to turn at
IN_SIGHT = 700  # pixels that are seen below the note's top when the workflow opens
PORT = 20  # height of an input or output
LANE = 2
TRIES = 200  # dot's result depends on the order in which it reads the nodes
NO_FRAME = 'BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="0"'
INSIDE = 100  # what ids of groups and reroutes within a subgraph are above those outside: none may be the same
INPUTS, OUTPUTS = -10, -20  # within a subgraph: the ids of what its wires from outside begin at, and end at
PLACES = """() => { const {graph} = window.app.canvas;
    const ends = graph.inputNode ? [graph.inputNode, graph.outputNode] : [];
    const down = (end, slots) => slots.map(slot => slot.pos[1] - end.boundingRect[1]);
    return {nodes: Object.fromEntries([...graph.nodes.map(node => {
        const [left, top, width, height] = node.boundingRect;
        return [node.id, {width, height, title: node.pos[1] - top,
            inputs: node.inputs.map((_, slot) => node.getInputPos(slot)[1] - top),
            outputs: node.outputs.map((_, slot) => node.getOutputPos(slot)[1] - top)}]; }),
    ...ends.map((end, number) => { const [left, top, width, height] = end.boundingRect;
        return [end.id, {width, height, title: 0, inputs: number ? down(end, graph.outputs) : [],
            outputs: number ? [] : down(end, graph.inputs)}]; })]),
    wires: [...graph.links.values()].map(link => ({id: link.id, source: String(link.origin_id),
        output: link.origin_slot, target: String(link.target_id), input: link.target_slot}))}; }"""

Lane = tuple[str, int, int]  # a node's id, its output, a column that is passed
Point = tuple[float, float]


@dataclass(frozen=True)
class Wire:
    """A link, from an output of node `source` to an input of node `target`."""

    id: int
    source: str
    output: int
    target: str
    input: int

    def lanes(self, column: dict[str, int]) -> list[Lane]:
        """Those that it runs through, from left to right."""
        return [(self.source, self.output, passed) for passed in range(column[self.source] + 1, column[self.target])]


def laid_out(document: dict, places: dict, groups: Sequence[Group], note: Note | None = None) -> dict:
    """The workflow, in the page's UI format, with places for nodes, wires, groups and the note left of all.

    places: what PLACES gives on the page that shows the workflow. groups: all nodes are in one of them.
    """
    nodes, wires = places["nodes"], [Wire(**wire) for wire in places["wires"]]
    column = columns_of(wires, [group.nodes for group in groups])
    tops = heights(nodes, wires, column)
    left, right = sides_of(nodes, wires, column, tops)
    for saved in document["nodes"]:
        node = str(saved["id"])
        saved["pos"] = [round(left[column[node]]), round(tops[node] + nodes[node]["title"])]
    document["groups"] = []
    for number, group in enumerate(groups, 1):
        passed = [column[node] for node in group.nodes]
        ends = [tops[node] + nodes[node]["height"] for node in group.nodes]
        box = (left[min(passed)] - MARGIN, min(tops[node] for node in group.nodes) - HEADING,
               right[max(passed)] + MARGIN, max(ends) + MARGIN)
        document["groups"].append(group_box(group, number, [round(place) for place in box]))
        if note and number == 1:
            top = max(box[1], min(tops[group.nodes[0]] - HEADING, ends[0] - IN_SIGHT))
            document["last_node_id"] += 1
            at = (-GUTTER - note.size[0], round(top) + TITLE)
            document["nodes"].append(note_node(note, document["last_node_id"], at))
    ways = {wire: [(round(x), round(y)) for x, y in way(nodes, wire, column, tops, left, right)] for wire in wires}
    document["extra"] = {**document.get("extra", {}), **reroutes(ways)}
    return document


def laid_out_inside(inner: dict, places: dict, groups: Sequence[Group]) -> None:
    """As `laid_out`, in place, for a subgraph's definition; places: of the page that shows its inside."""
    ends = {INPUTS: inner["inputNode"], OUTPUTS: inner["outputNode"]}
    inner["nodes"] += [{"id": end} for end in ends]
    laid_out(inner, places, [Group("", (str(INPUTS),)), *groups, Group("", (str(OUTPUTS),))])
    for end in inner["nodes"][-len(ends):]:
        ends[end["id"]]["bounding"][:2] = end["pos"]
    inner["nodes"] = inner["nodes"][:-len(ends)]
    inner["groups"] = [{**group, "id": INSIDE + group["id"]} for group in inner["groups"][1:-1]]
    inner["state"]["lastGroupId"] = max(group["id"] for group in inner["groups"])
    inner["reroutes"] = [_numbered_inside(point) for point in inner["extra"].pop("reroutes", [])]
    inner["state"]["lastRerouteId"] = max((point["id"] for point in inner["reroutes"]), default=0)
    parents = {link["id"]: INSIDE + link["parentId"] for link in inner["extra"].pop("linkExtensions", [])}
    for link in inner["links"]:
        link |= {"parentId": parents[link["id"]]} if link["id"] in parents else {}


def _numbered_inside(reroute: dict) -> dict:
    return {**reroute, **{key: INSIDE + reroute[key] for key in ("id", "parentId") if reroute.get(key)}}


def columns_of(wires: Sequence[Wire], bands: Sequence[Sequence[str]]) -> dict[str, int]:
    """Each node's column: right of what feeds it and of all earlier bands, and so that wires pass few columns.

    What nothing feeds stands first in the first band.
    """
    column: dict[str, int] = {}
    for band in bands:
        start = max(column.values(), default=-1) + 1
        for node in in_order(band, wires):
            column[node] = max([start, *(column[wire.source] + 1 for wire in wires if wire.target == node)])
    fed = {wire.target for wire in wires}
    for _ in column:
        for number, band in enumerate(bands):
            last = max(column[node] for node in band)
            for node in band:
                if number or node in fed:
                    column[node] = best_column(node, column, wires, last)
    return column


def in_order(band: Sequence[str], wires: Sequence[Wire]) -> list[str]:
    """The band's nodes, each after what feeds it."""
    found: list[str] = []
    while len(found) < len(band):
        waiting = {wire.target for wire in wires if wire.source in band and wire.source not in found}
        found += [node for node in band if node not in found and node not in waiting]
    return found


def best_column(node: str, column: dict[str, int], wires: Sequence[Wire], last: int) -> int:
    """Where a node causes the fewest lanes, between its own column and `last`; the rightmost of these."""
    end = min([last, *(column[wire.target] - 1 for wire in wires if wire.source == node)])

    def cost(place: int) -> tuple[int, int]:
        moved = {**column, node: place}
        return len({lane for wire in wires for lane in wire.lanes(moved)}), -place

    return min(range(column[node], end + 1), key=cost)


def sides_of(nodes: dict[str, dict], wires: Sequence[Wire], column: dict[str, int], tops: dict[str | Lane, float]
             ) -> tuple[list[float], list[float]]:
    """Left and right of each column; the steeper a wire, the wider is the gutter that it crosses."""
    steepest: dict[int, float] = defaultdict(float)
    for wire in wires:
        places = levels(nodes, wire, column, tops)
        for number, (before, after) in enumerate(pairwise(places), column[wire.source]):
            steepest[number] = max(steepest[number], abs(after - before))
    left, right = [0.0], []
    for number in range(max(column.values()) + 1):
        right.append(left[-1] + widest(nodes, column, number))
        left.append(right[-1] + max(GUTTER, SLOPE * steepest[number]))
    return left, right


def widest(nodes: dict[str, dict], column: dict[str, int], number: int) -> float:
    """Width of a column."""
    return max(place["width"] for node, place in nodes.items() if column[node] == number)


def levels(nodes: dict[str, dict], wire: Wire, column: dict[str, int], tops: dict[str | Lane, float]) -> list[float]:
    """Heights of a wire: at its output, in each lane, at its input."""
    return [tops[wire.source] + nodes[wire.source]["outputs"][wire.output],
            *(tops[lane] for lane in wire.lanes(column)),
            tops[wire.target] + nodes[wire.target]["inputs"][wire.input]]


def way(nodes: dict[str, dict], wire: Wire, column: dict[str, int], tops: dict[str | Lane, float],
        left: Sequence[float], right: Sequence[float]) -> list[Point]:
    """Where a wire begins, the left and right end of each lane, and where it ends."""
    first, *passed, last = levels(nodes, wire, column, tops)
    points = [(left[column[wire.source]] + nodes[wire.source]["width"], first)]
    for number, level in enumerate(passed, column[wire.source] + 1):
        points += [(left[number] - BEND, level), (right[number] + BEND, level)]
    return [*points, (left[column[wire.target]], last)]


def heights(nodes: dict[str, dict], wires: Sequence[Wire], column: dict[str, int]) -> dict[str | Lane, float]:
    """The top of each node and the height of each lane: of several ways to draw it, the one with the flattest wires."""
    best, least = {}, float("inf")
    for seed in range(TRIES):
        tops = drawn(nodes, wires, column, random.Random(seed))
        rise = 2 * (max(tops[node] + nodes[node]["height"] for node in nodes) - min(tops.values()))
        for wire in wires:
            places = levels(nodes, wire, column, tops)
            rise += sum(abs(after - before) for before, after in pairwise(places))
        if rise < least:
            best, least = tops, rise
    return best


def drawn(nodes: dict[str, dict], wires: Sequence[Wire], column: dict[str, int], rng: random.Random
          ) -> dict[str | Lane, float]:
    """As `heights`, from one run of dot."""
    lanes = list(dict.fromkeys(lane for wire in wires for lane in wire.lanes(column)))
    names: dict[str | Lane, str] = {node: f"node{number}" for number, node in enumerate(nodes)}
    names |= {lane: f"lane{number}" for number, lane in enumerate(lanes)}
    shapes = [f"{names[node]} [label=<{table(place)}>]" for node, place in nodes.items()]
    shapes += [f'{names[lane]} [shape=box, fixedsize=true, label="", width={widest(nodes, column, lane[2]) / 72}, '
               f"height={LANE / 72}]" for lane in lanes]
    rng.shuffle(shapes)
    ranks: dict[int, list[str]] = defaultdict(list)
    for thing, name in names.items():
        ranks[column[thing] if thing in column else thing[2]].append(name)
    same = [f"{{rank=same; column{number} [shape=point, style=invis]; {'; '.join(inside)}}}"
            for number, inside in ranks.items()]
    same += [f"column{number} -> column{number + 1} [style=invis, weight=0]" for number in range(len(ranks) - 1)]
    edges = {}
    for wire in wires:
        way = [f"{names[wire.source]}:o{wire.output}:e", *(names[lane] for lane in wire.lanes(column)),
               f"{names[wire.target]}:i{wire.input}:w"]
        for first, second in pairwise(way):
            inner = first.startswith("lane") + second.startswith("lane")
            edges[first, second] = (6, 4, 20)[inner]  # a lane that passes several columns is straight
    lines = [f"digraph {{ rankdir=LR; splines=false; ranksep={GUTTER / 72}; nodesep={BETWEEN / 72}",
             "node [shape=plain]", *shapes, *same,
             *(f"{first} -> {second} [weight={weight}]" for (first, second), weight in edges.items()), "}"]
    run = subprocess.run(["dot", "-Tjson0"], input="\n".join(lines), text=True, capture_output=True, check=True)
    middle = {each["name"]: -float(each["pos"].split(",")[1]) for each in json.loads(run.stdout)["objects"]
              if "pos" in each}
    return {thing: middle[name] - (nodes[thing]["height"] / 2 if thing in nodes else 0)
            for thing, name in names.items()}


def table(place: dict) -> str:
    """A node for dot, with its inputs on the left and its outputs on the right, at their heights."""
    halves = []
    for letter, ports in (("i", place["inputs"]), ("o", place["outputs"])):
        rows, reached = "", 0.0
        for slot, middle in sorted(enumerate(ports), key=lambda port: port[1]):
            top = max(reached, middle - PORT / 2)
            rows += cell(place["width"] / 2, top - reached) + cell(place["width"] / 2, PORT, f'PORT="{letter}{slot}"')
            reached = top + PORT
        rows += cell(place["width"] / 2, place["height"] - reached)
        halves.append(f"<TD><TABLE {NO_FRAME}>{rows}</TABLE></TD>")
    return f"<TABLE {NO_FRAME}><TR>{''.join(halves)}</TR></TABLE>"


def cell(width: float, height: float, port: str = "") -> str:
    """A row of a table, or nothing where it had no height."""
    size = f'WIDTH="{round(width)}" HEIGHT="{round(height)}"'
    return f'<TR><TD FIXEDSIZE="TRUE" {size} {port}></TD></TR>' if round(height) > 0 else ""


def turns(points: Sequence[Point]) -> list[Point]:
    """Those at which a wire must turn, without its ends."""
    kept = [points[0]]
    for point, after in pairwise(points[1:]):
        if max(abs(point[1] - kept[-1][1]), abs(after[1] - kept[-1][1])) > STRAIGHT:
            kept.append(point)
    return kept[1:]


def reroutes(ways: dict[Wire, Sequence[Point]]) -> dict[str, list[dict]]:
    """What the page saves of points on wires; wires of one output share what their ways begin with."""
    needed: dict[tuple[str, int], set[Point]] = defaultdict(set)
    for wire, points in ways.items():
        needed[wire.source, wire.output] |= set(turns(points))
    known: dict[tuple, dict] = {}
    ends = []
    for wire, points in ways.items():
        parent = None
        for point in points[1:-1]:
            if point not in needed[wire.source, wire.output]:
                continue
            end = (wire.source, wire.output, point)
            if end not in known:
                known[end] = {"id": len(known) + 1, **({"parentId": parent["id"]} if parent else {}),
                              "pos": list(point), "linkIds": []}
            parent = known[end]
            parent["linkIds"].append(wire.id)
        if parent:
            ends.append({"id": wire.id, "parentId": parent["id"]})
    return {"reroutes": list(known.values()), "linkExtensions": ends} if known else {}
