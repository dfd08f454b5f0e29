"""A recording that runs for weeks: its sockets, its log, its metrics, its faults."""
