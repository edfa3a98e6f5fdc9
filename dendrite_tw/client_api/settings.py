"""What the operator says about accounts and discovery, as the client API needs it, and its rate limits."""

from __future__ import annotations

from typing import Any

import msgspec

from ..web.routes import Limit

LOGIN = Limit("login")
REGISTER = Limit("register")
ACCOUNT = Limit("account")
PROFILE = Limit("profile")
PUSH = Limit("push")
RECEIPTS = Limit("receipts")
TYPING = Limit("typing")
TOKENS = Limit("tokens")


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """``client_api.turn``: a shared secret, or a fixed name and password; lifetime in seconds."""

    uris: tuple[str, ...] = ()
    lifetime_seconds: int = 300
    shared_secret: str = ""
    username: str = ""
    password: str = ""


class CaptchaSettings(msgspec.Struct, frozen=True, kw_only=True):
    """A captcha of reCAPTCHA's kind; ``bypass_secret`` is a response that always passes, where set."""

    public_key: str
    private_key: str
    siteverify_api: str = "https://www.google.com/recaptcha/api/siteverify"
    api_js_url: str = "https://www.google.com/recaptcha/api.js"
    form_field: str = "g-recaptcha-response"
    sitekey_class: str = "g-recaptcha"
    bypass_secret: str = ""


class Notices(msgspec.Struct, frozen=True, kw_only=True):
    """``global.server_notices``: who sends the administrators' messages, and the room in which they arrive."""

    local_part: str
    display_name: str = ""
    avatar_url: str = ""
    room_name: str = ""


class ClientSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The part of the configuration that the account sections of the client API work by.

    ``room_versions`` maps the supported versions to ``stable`` or ``unstable``.
    ``support`` is the answer of ``/.well-known/matrix/support``, where there is one.
    """

    server_name: str
    registration_disabled: bool = True
    registration_requires_token: bool = False
    guests_disabled: bool = False
    registration_shared_secret: str = ""
    captcha: CaptchaSettings | None = None
    turn: Turn = Turn()
    well_known_client_name: str = ""
    well_known_server_name: str = ""
    well_known_sliding_sync_proxy: str = ""
    support: dict[str, Any] = {}
    default_room_version: str = "12"
    room_versions: dict[str, str] = {}
    unstable_features: dict[str, bool] = {}
    has_appservices: bool = False
    notices: Notices | None = None
