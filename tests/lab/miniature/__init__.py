"""The miniature world: pictures drawn by a program that knows the truth, and a small Stable Diffusion grown on them."""
