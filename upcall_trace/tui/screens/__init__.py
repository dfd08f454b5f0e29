"""The browser's screens: they own the state, bind the keys and place the panes."""
