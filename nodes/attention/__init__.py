"""What a call of the denoiser is made of: sides, words, maps, masks; a second sampling run beside the first."""
