"""Several of our servers in one process, under one clock and one seed: see `tests.simulation.storm`."""
