"""How this server gets into rooms of other servers, and lets others into its own.

Server-Server API, "Joining Rooms", "Knocking upon a room", "Inviting to a room", "Leaving
Rooms", "Third-party invites".  The protocol is in `matrix.handshakes`, as generators that
ask; here are who answers them, where what they return is kept, and what is done in the
background for a room of which only a part is known yet.
"""
