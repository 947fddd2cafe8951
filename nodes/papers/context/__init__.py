"""Diverse context (Kim, Chen, Qiu 2024): a word learns, in text alone, to leave the rest of a prompt as it is."""
