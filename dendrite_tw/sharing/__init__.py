"""How the processes of a component share what only one of them may do at a time."""
