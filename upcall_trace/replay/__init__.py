"""Sending a recording again: planned, played, compared. docs/replay.md."""
