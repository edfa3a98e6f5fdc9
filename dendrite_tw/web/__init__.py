"""HTTP, both ways: route tables made into Resource trees, and outgoing requests."""
