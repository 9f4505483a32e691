"""Notebook 00: the first probability a language model shows you, and the map of the course.

    p(token) = softmax(logits / T)        T → 0: always the likeliest token;  T = 1: as trained;  T large: anything goes

Does:     temperature on logits; the list of notebooks with a learner's progress.
Leaves out: everything else: that is what the other notebooks are for.
Source:   Ackley, Hinton & Sejnowski 1985 (temperature); Holtzman et al. 2020 §3.3 (in text generation).
"""

from .course import NOTEBOOKS, Notebook, course_map
from .temperature import softmax_with_temperature

__all__ = ["NOTEBOOKS", "Notebook", "course_map", "softmax_with_temperature"]
