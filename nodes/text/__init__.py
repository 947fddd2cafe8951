"""Prompts, tokens, spans and concepts; encoding with autograd."""
