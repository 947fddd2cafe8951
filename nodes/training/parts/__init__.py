"""Trainable parts: what an optimiser may change, each on its own and all of them together."""
