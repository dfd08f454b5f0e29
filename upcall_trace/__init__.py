"""upcall-trace: record, decode and explain guest hotplug over Dragonball's upcall channel."""

__version__ = "0.1.0"
