"""Small random checkpoints and picture encoders, and what makes ComfyUI detect them.

The folder is also a custom node pack: linked into a server's `custom_nodes` it registers the classes there.
"""
from . import models, vision

models.register()
vision.register()

NODE_CLASS_MAPPINGS: dict[str, type] = {}
