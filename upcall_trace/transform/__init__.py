"""Captures made from captures: composed, edited, minimised."""
