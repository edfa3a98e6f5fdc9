"""The queue: a JetStream-compatible server that lives in the reactor, and the client of it or of a real one.

The client and the server are state machines over the operations of the NATS protocol (`wire`): objects when
both sit in one process (`embedded`), bytes when TCP lies between them.
"""
