"""How components call each other: one declared interface, over a direct call or over bytes."""
