"""The files of tools/hostile.py, a module for each kind of reader, and how their effect is judged."""
