"""What the pytest plugin does, most of it without pytest. docs/pytest.md."""
