"""upcall-trace: record, decode and simulate guest hotplug over Dragonball's upcall channel."""

__version__ = "0.1.0"
