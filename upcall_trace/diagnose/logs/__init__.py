"""What guest consoles and VMM logs say about upcall operations. docs/diagnosis.md."""
