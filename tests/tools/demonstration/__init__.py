"""The main job, shown in a real ComfyUI: what `python3 tests/demo.py` does once everything is set up."""
