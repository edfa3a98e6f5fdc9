"""The wiring: every component answers all that its interface promises."""

from __future__ import annotations

import inspect

from dendrite_tw.federation_api.api import FederationAPI, NoFederation
from dendrite_tw.links.codec import methods_of
from dendrite_tw.room_api.api import RoomAPI
from dendrite_tw.user_api.api import KeyAPI, UserAPI
from tests.federation_api.whole import WholeServerTestCase


class WiringTests(WholeServerTestCase):
    def test_components_answer_what_their_interfaces_promise(self) -> None:
        parts = self.server.parts
        for interface, component in (
            (RoomAPI, parts.rooms),
            (UserAPI, parts.users),
            (KeyAPI, parts.keys),
            (FederationAPI, parts.federating.component),
            (FederationAPI, NoFederation()),
        ):
            for name in methods_of(interface):
                method = getattr(component, name, None)
                self.assertIsNotNone(method, f"{interface.__name__}.{name}")
                promised = [p for p in inspect.signature(getattr(interface, name)).parameters if p != "self"]
                self.assertEqual(list(inspect.signature(method).parameters), promised, f"{interface.__name__}.{name}")
