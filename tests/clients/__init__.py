"""Real clients, driven against a server that was started as users start it."""
