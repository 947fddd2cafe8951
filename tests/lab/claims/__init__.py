"""What the papers claim, measured on the miniature world: what `python3 tests/lab/bench/claims.py` runs.

| module | holds |
|---|---|
| `options.py`, `__main__.py` | the command line |
| `world.py` | the checkpoint and the oracle, and how pictures are drawn with ComfyUI's own sampler |
| `task.py` | what every method gets: subject, pictures, prompts, seed, noise |
| `technique.py`, `techniques/` | the interface of a technique, and one module a technique |
| `bounds.py`, `training.py` | methods and steps that several techniques share |
| `judging.py`, `store.py`, `harness.py` | pictures to values; cached cells; which are there, which are to be made |
| `report.py`, `sheet.py` | the table with its intervals, and the contact sheets |
"""
