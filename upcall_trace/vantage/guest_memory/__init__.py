"""Upcall as it stands in a guest's memory: a running VMM's, or an image's. docs/guest-memory.md."""
