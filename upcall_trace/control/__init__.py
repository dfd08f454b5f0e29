"""What the VMM's side can be told, and the note beside a socket that says what is behind it."""
