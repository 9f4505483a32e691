"""llmcourse: large language models, built from nothing and proven equal to the libraries you use at work.

Importing the package costs nothing but Python: each part is imported where it is used.
"""

__version__ = "0.1.0"
