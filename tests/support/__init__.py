"""Real ComfyUI for tests: in this process, as a server, and in a browser."""
