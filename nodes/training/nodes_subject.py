"""Nodes that bring pictures in."""
NODES: list[type] = []
