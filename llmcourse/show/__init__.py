"""What a notebook shows: cards, live source, figures with alt text, tables, attention maps, one widget frame.

    cards.py     card                         a symbol, a title, a few lines
    code.py      source                       the code that runs, highlighted
    tables.py    table                        rows of numbers
    pictures.py  figure · attention · bars    pictures with alt text
    frame.py     play                         controls, and what they change

Does:     every display is one bundle of text/html and text/plain, so JupyterLab, VS Code, Colab, GitHub and a bare
          terminal each take the richest form they know. Reads in light and dark themes, and where a front end
          strips inline styles. All text is escaped.
Leaves out: interactive plots, animation, anything that needs JavaScript of its own.
Source:   colours of Okabe & Ito 2008, "Color Universal Design".
"""

from .cards import card
from .code import source
from .core import is_notebook
from .frame import ends, play
from .pictures import COLOURS, attention, bars, figure, style
from .tables import table

__all__ = ["COLOURS", "attention", "bars", "card", "ends", "figure", "is_notebook", "play", "source", "style", "table"]
