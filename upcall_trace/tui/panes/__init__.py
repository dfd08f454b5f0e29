"""What the browser draws: each pane is a widget of lines."""
