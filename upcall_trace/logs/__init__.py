"""Lines of guest consoles, VMMs and runtimes: what they say and whose they are."""
