"""The archive for an issue, and what is taken out of it.."""
