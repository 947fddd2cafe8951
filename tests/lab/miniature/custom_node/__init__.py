"""A test-only node pack: linked into a server's `custom_nodes` it makes Load Checkpoint know the miniature."""
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))

from miniature.models import register

register()

NODE_CLASS_MAPPINGS: dict[str, type] = {}
