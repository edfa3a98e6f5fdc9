"""The client-server API: a table of routes, and a file for each section of the specification."""
