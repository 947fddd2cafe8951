"""Families of models: what a denoiser is built of, and what training and looking inside need to know of it."""
