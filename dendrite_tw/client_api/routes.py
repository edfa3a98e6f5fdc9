"""The client API's rows about accounts and users' data, joined from their sections."""

from __future__ import annotations

from typing import Protocol

from ..room_api.api import RoomAPI
from ..user_api.api import UserAPI
from ..web.routes import Route, client_paths
from ..world import World
from .account import AccountSection
from .account_data import AccountDataSection
from .admin import AdminSection
from .devices import DevicesSection
from .discovery import DiscoverySection
from .login import LoginSection
from .notices import NoticesSection
from .openid import OpenIdSection
from .pages import PagesSection
from .profile import ProfileSection
from .push_rules import PushRulesSection
from .pushers import PushersSection
from .receipts import Queue, ReceiptsSection
from .register import RegisterSection
from .settings import ClientSettings
from .uia import InteractiveAuth


class Section(Protocol):
    """A file of the client API."""

    def routes(self) -> list[Route]: ...


def account_routes(
    settings: ClientSettings,
    users: UserAPI,
    rooms: RoomAPI,
    queue: Queue,
    world: World,
    auth: InteractiveAuth,
) -> list[Route]:
    """Every row of these sections, with the ``r0`` paths of older clients.

    `auth` is shared with other sections that ask for user-interactive authentication.
    """
    sections: list[Section] = [
        LoginSection(users, settings, auth),
        RegisterSection(users, settings, auth, world),
        AccountSection(users, auth),
        DevicesSection(users, auth),
        ProfileSection(users),
        AccountDataSection(users),
        PushRulesSection(users),
        PushersSection(users, rooms),
        ReceiptsSection(users, rooms, queue, world.clock),
        OpenIdSection(users, settings, world.clock),
        DiscoverySection(users, settings),
        AdminSection(users, settings),
        PagesSection(settings, auth),
    ]
    if settings.notices is not None:
        sections.append(NoticesSection(users, rooms, settings, settings.notices))
    return client_paths(row for section in sections for row in section.routes())
