"""The short table of who answers what, held to the rows of all components."""

from __future__ import annotations

import re

from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.front.ways import component_of
from tests.federation_api.whole import WholeServerTestCase


class WaysTests(WholeServerTestCase):
    def test_every_row_is_its_components(self) -> None:
        for component, rows in self.server.parts.rows.items():
            for row in rows:
                path = re.sub(r"\{[^}]*\}", "%21x:y", row.path).encode()
                self.assertEqual(component_of(row.method.encode(), path), component, (row.method, row.path))


class OtherPaths(SynchronousTestCase):
    def test_what_nobody_has_is_the_client_apis(self) -> None:
        for path in (b"/_matrix/client/v3/nothing", b"/_matrix/nothing", b"/_synapse/admin/x", b"/_matrix"):
            self.assertEqual(component_of(b"GET", path), "client_api", path)

    def test_methods_that_there_are_not_are_answered_by_who_has_the_path(self) -> None:
        self.assertEqual(component_of(b"POST", b"/_matrix/client/v3/sync"), "sync_api")
        self.assertEqual(component_of(b"DELETE", b"/_matrix/client/r0/rooms/!a:b/state/m.room.name"), "client_api")
        self.assertEqual(component_of(b"OPTIONS", b"/_matrix/media/v3/upload"), "media_api")

    def test_a_head_is_asked_where_it_would_be_fetched(self) -> None:
        self.assertEqual(component_of(b"HEAD", b"/_matrix/client/v3/rooms/!a:b/state"), "sync_api")

    def test_what_every_process_says_of_itself(self) -> None:
        for path in (b"/_dendrite/monitor/up", b"/metrics", b"/health", b"/", b"/robots.txt", b"/metrics/"):
            self.assertEqual(component_of(b"GET", path), "", path)
