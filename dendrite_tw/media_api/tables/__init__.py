"""The media component's tables."""
