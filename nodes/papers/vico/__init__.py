"""ViCo (arXiv 2306.00971): image cross-attention to a reference picture, with an object mask of its own making."""
