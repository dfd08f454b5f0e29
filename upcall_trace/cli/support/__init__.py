"""What the commands share: output, files, options, listings, signals."""
