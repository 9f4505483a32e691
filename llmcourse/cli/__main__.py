"""`python -m llmcourse.cli`: the command line without a script, the same on every system."""

from . import main

__all__: list[str] = []

main()
