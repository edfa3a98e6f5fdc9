"""The heart: rooms, their events and their state, one writer for each room."""
