"""The one class from which every error of ours derives, those of the tool as well.

It stands here because `dissectors` imports nothing of `upcall_trace`; users of the tool take it
from there: `except upcall_trace.UpcallError`.
"""

from __future__ import annotations


class UpcallError(Exception):
    """Something that we found to be wrong: bytes, a recording, a request, or what was asked of us.

    A class of ours may derive from a class of Python's as well, ValueError for example.
    """
