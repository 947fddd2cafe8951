"""The papers, a room each: they use the rooms beside this folder and never each other."""
