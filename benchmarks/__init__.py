"""Measurements, never part of the tests: `make bench`. Compare ratios within one run only."""
