"""Small random checkpoints in ComfyUI's own format, and the model classes that make ComfyUI detect them.

The folder is also a custom node pack: linked into a server's `custom_nodes` it registers the classes there.
"""
from .models import register

register()

NODE_CLASS_MAPPINGS: dict[str, type] = {}
