"""Any listener serves any path: what is of another component goes inside, over NATS, to a process that has it.

Loaded only where the components run as processes of their own.
"""
