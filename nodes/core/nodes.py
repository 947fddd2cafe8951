"""Node classes of this room."""
NODES: list[type] = []
