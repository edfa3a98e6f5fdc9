"""The configuration, cut to what each part needs, and the small parts that are made of nothing else."""

from __future__ import annotations

from twisted.web.resource import IResource

from .client_api.settings import CaptchaSettings, ClientSettings, Notices, Turn
from .client_api.uia import Captcha
from .config import Config
from .matrix.room_versions import ROOM_VERSIONS
from .metrics import Metrics, MetricsResource
from .user_api.settings import UserSettings
from .web.limits import SlotLimiter
from .world import World


def user_settings(config: Config) -> UserSettings:
    notices = config.global_.server_notices
    return UserSettings(
        server_name=config.global_.server_name,
        bcrypt_cost=config.user_api.bcrypt_cost,
        openid_token_lifetime_ms=config.user_api.openid_token_lifetime_ms,
        auto_join_rooms=tuple(config.user_api.auto_join_rooms),
        reserved_localparts=frozenset([notices.local_part] if notices.local_part else []),
    )


def client_settings(config: Config) -> ClientSettings:
    api, turn = config.client_api, config.client_api.turn
    captcha = CaptchaSettings(
        public_key=api.recaptcha_public_key,
        private_key=api.recaptcha_private_key,
        siteverify_api=api.recaptcha_siteverify_api,
        api_js_url=api.recaptcha_api_js_url,
        form_field=api.recaptcha_form_field,
        sitekey_class=api.recaptcha_sitekey_class,
        bypass_secret=api.recaptcha_bypass_secret,
    )
    return ClientSettings(
        server_name=config.global_.server_name,
        registration_disabled=api.registration_disabled,
        registration_requires_token=api.registration_requires_token,
        guests_disabled=api.guests_disabled,
        registration_shared_secret=api.registration_shared_secret,
        captcha=captcha if api.enable_registration_captcha else None,
        turn=Turn(
            uris=tuple(turn.turn_uris),
            lifetime_seconds=int(turn.turn_user_lifetime or 300),
            shared_secret=turn.turn_shared_secret,
            username=turn.turn_username,
            password=turn.turn_password,
        ),
        well_known_client_name=config.global_.well_known_client_name,
        well_known_server_name=config.global_.well_known_server_name,
        well_known_sliding_sync_proxy=config.global_.well_known_sliding_sync_proxy,
        default_room_version=config.room_server.default_room_version,
        notices=notices_settings(config),
        room_versions={name: "stable" if version.stable else "unstable" for name, version in ROOM_VERSIONS.items()},
    )


def notices_settings(config: Config) -> Notices | None:
    notices = config.global_.server_notices
    if not notices.enabled:
        return None
    return Notices(
        local_part=notices.local_part or "_server",
        display_name=notices.display_name,
        avatar_url=notices.avatar_url,
        room_name=notices.room_name,
    )


def captcha(settings: ClientSettings, world: World) -> Captcha | None:
    """Who judges captchas, where they are asked for."""
    if settings.captcha is None:
        return None
    from treq.client import HTTPClient
    from twisted.web.client import Agent

    from .client_api.captcha import HttpCaptcha

    return HttpCaptcha(settings.captcha, HTTPClient(Agent(world.time)), world.time)


def limiter(config: Config, world: World) -> SlotLimiter:
    limits = config.client_api.rate_limiting
    return SlotLimiter(world.clock, limits.enabled, limits.threshold, limits.cooloff_ms, limits.exempt_user_ids)


def metrics_resource(config: Config, metrics: Metrics) -> dict[bytes, IResource]:
    if not config.global_.metrics.enabled:
        return {}
    auth = config.global_.metrics.basic_auth
    return {b"metrics": MetricsResource(metrics, auth.username, auth.password)}


# --- federation ---


def federates(config: Config, world: World) -> bool:
    """Whether this server talks to others."""
    return not config.global_.disable_federation and world.internet is not None
