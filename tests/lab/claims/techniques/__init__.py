"""One module a technique, each with ``technique(quick) -> Technique``; claims/options.py lists their names."""
