"""CoRe: Context-Regularized Text Embedding Learning (Wu et al., 2024, arXiv 2408.15914)."""
