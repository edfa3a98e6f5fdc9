"""The tables of the user component, a module for each group."""
