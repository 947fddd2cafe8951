"""Looking inside: attention to words, recorded and shown.

Recorders see what the model's family lets them see: in a pass of training (`pass_recorder`), while any sampler runs
(`sampling_recorder`), or on a latent that is given (`latent_recorder`). `record` keeps the maps; the nodes read them by
`reading` and draw them by `heat`.
"""
