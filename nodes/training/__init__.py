"""Images in, trained concept out: dataset, recipe, loss terms, trainable parts, the loop, checkpoints, progress."""
