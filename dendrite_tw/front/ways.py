"""Which component answers a request: a short table of paths, so that nobody needs the others' tables of routes.

The specification's endpoints are divided among components as Dendrite divided them, so an old proxy's configuration
sends most requests to the right place.  A path that is nobody's is answered by the client API, as unknown ones are.
"""

from __future__ import annotations

import re
from typing import Final

_CLIENT: Final = r"/_matrix/client/(?:r0|v1|v3|unstable)"
_ROOM: Final = _CLIENT + r"/rooms/[^/]+"

WAYS: Final[tuple[tuple[str, str, str], ...]] = (
    ("", r"/_matrix/media/", "media_api"),
    ("", r"/_matrix/client/v1/media/", "media_api"),
    ("", r"/_matrix/federation/v1/media/", "media_api"),
    ("", r"/_matrix/federation/v1/openid/userinfo$", "client_api"),
    ("", r"/_matrix/federation/", "federation_api"),
    ("", r"/_matrix/key/", "federation_api"),
    ("", r"/_(?:dendrite|synapse)/admin/(?:v1/)?federation/", "federation_api"),
    ("", _CLIENT + r"/(?:sync|initialSync|joined_rooms|keys/changes)$", "sync_api"),
    ("", _CLIENT + r"/events(?:/[^/]*)?$", "sync_api"),
    ("", _CLIENT + r"/presence/[^/]+/status$", "sync_api"),
    ("", _CLIENT + r"/user/[^/]+/filter(?:/[^/]*)?$", "sync_api"),
    ("", _ROOM + r"/(?:messages|members|joined_members|initialSync|threads|timestamp_to_event)$", "sync_api"),
    ("", _ROOM + r"/(?:context|event)/[^/]*$", "sync_api"),
    ("", _ROOM + r"/relations/", "sync_api"),
    ("GET", _ROOM + r"/state(?:/|$)", "sync_api"),
    ("", r"/(?:_matrix|_dendrite|_synapse|\.well-known)(?:/|$)", "client_api"),
)
"""Method (empty for all; GET is HEAD too), the beginning of a path as a regular expression, and the component.

The first row that fits counts.
"""

OWN: Final = re.compile(rb"/(?:_dendrite/monitor|metrics|health)(?:/|\Z)")
"""What every process says of itself."""

_GROUPS: Final = tuple((method, re.compile(path.encode()), component) for method, path, component in WAYS)


def component_of(method: bytes, path: bytes) -> str:
    """The component that answers; empty where any process does: it says of itself how it is, and knows no other path.

    `path` is as it was sent, without the query.
    """
    if OWN.match(path):
        return ""
    if method == b"HEAD":
        method = b"GET"
    for wanted, pattern, component in _GROUPS:
        if pattern.match(path) and (not wanted or wanted.encode() == method):
            return component
    return ""
