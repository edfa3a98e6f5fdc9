"""The federation component's tables."""
