"""Makes ``twistd dendrite`` and ``twist dendrite`` known to Twisted."""

from twisted.application.service import ServiceMaker

dendrite = ServiceMaker(
    "dendrite_tw", "dendrite_tw.tap", "A Matrix homeserver that reads Dendrite's configuration.", "dendrite"
)
