"""Everything the tests and the demo need on this machine, set up on first use. Standard library only."""
