"""One module per command of `python -m analysis`: `add(commands)` declares its words, `run` carries it out.

Importing a module costs nothing: pandas and matplotlib come in where a command runs.
"""
