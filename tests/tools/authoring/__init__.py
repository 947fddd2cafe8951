"""Writes the bundled workflows: `python3 tests/run.py --co -q` once for the set-up, then see build.py."""
