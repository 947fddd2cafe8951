"""Harmonizing visual and textual embeddings (Song et al. 2024): orthogonal visual embedding, self-attention swap."""
