"""DETEX: a subject's word kept apart from the pose and the background of its pictures (Cai et al. 2024)."""
