"""Listeners of processes that have some of the components."""
