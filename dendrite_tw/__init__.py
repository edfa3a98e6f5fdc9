"""dendrite_tw: a Matrix homeserver on Twisted that takes the place of Dendrite."""

__version__ = "0.1.0"
