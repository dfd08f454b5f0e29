"""What a capture can be written as."""
