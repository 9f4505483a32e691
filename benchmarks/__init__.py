"""Races against the library each package is proven equal to: `python -m benchmarks [NAME…]`."""
