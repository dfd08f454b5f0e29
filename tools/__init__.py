"""What maintains the project and is not part of what it ships."""
