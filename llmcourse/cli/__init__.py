"""The command line, and what it is made of: the doctor, the learner's copies, the public address, notebooks without a browser.

Does:     gives the script `llmcourse` its entry point.
Leaves out: everything heavy; the parts are imported where they are used.
"""

from .app import build, main

__all__ = ["build", "main"]
