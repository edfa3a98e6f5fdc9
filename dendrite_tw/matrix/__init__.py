"""The Matrix protocol, pure: no network, no database, no clock, no chance.

Everything that a rule needs is an argument, so each rule can be tested with
plain values and may run in any thread or process.
"""
