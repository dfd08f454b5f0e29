"""Where recorded bytes get meaning: connections, operations, filters, provenance."""
