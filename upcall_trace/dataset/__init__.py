"""Captures as tables, for people with a data tool of their own."""
