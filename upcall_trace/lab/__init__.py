"""A disposable live guest in QEMU: docs/lab.md."""
