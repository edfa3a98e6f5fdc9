"""The load tool: what an operation costs the server, beside what it costs Synapse on the same machine.

``python -m bench`` starts the servers on loopback as a user would start them, drives both with the same
requests, scenario by scenario in turn, and prints processor time per operation, latency, rate and memory.
Figures and the way to repeat them are in ``docs/performance.md``.
"""
