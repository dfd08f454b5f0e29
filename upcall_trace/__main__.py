"""`python -m upcall_trace` is `upcall-trace`."""

from .cli import main

main()
