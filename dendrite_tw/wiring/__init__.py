"""How each component is made of what its process has: a file for each, which is loaded where the component runs."""
