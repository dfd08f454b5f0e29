"""What the browser knows, without textual: rows, order, findings, settings."""
