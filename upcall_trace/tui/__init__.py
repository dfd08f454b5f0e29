"""The terminal browser of captures: the only package that imports textual."""
