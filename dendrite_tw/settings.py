"""The configuration, cut to what each part needs, and the small parts that are made of nothing else."""

from __future__ import annotations

from twisted.web.resource import IResource

from .client_api.settings import CaptchaSettings, ClientSettings, Notices, Turn
from .client_api.uia import Captcha
from .config import Config
from .config.key_files import old_verify_keys, signing_key
from .federation_api.keyring import Perspective, perspective
from .federation_api.signing_keys import OwnKeys
from .matrix.room_versions import ROOM_VERSIONS
from .metrics import Metrics, MetricsResource
from .user_api.settings import UserSettings
from .web.internet import ClientOptions, NameCache
from .web.limits import SlotLimiter
from .web.networks import Networks
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


def client_options(config: Config) -> ClientOptions:
    """How connections to other homeservers are made."""
    api = config.federation_api
    return ClientOptions(
        Networks(api.deny_networks, api.allow_networks),
        validate_tls=not api.disable_tls_validation,
        keep_alive=not api.disable_http_keepalives,
    )


def name_cache(config: Config) -> NameCache | None:
    cache = config.global_.dns_cache
    return NameCache(cache.cache_size, int(cache.cache_lifetime * 1000)) if cache.enabled else None


def own_keys(config: Config, world: World) -> OwnKeys:
    """What this server signs with, and what it publishes of it; `ConfigError` for a key that is none."""
    old, validity_ms = old_verify_keys(config), int(config.global_.key_validity_period * 1000)
    try:
        return OwnKeys(config.global_.server_name, signing_key(config), old, validity_ms, world.clock)
    except ValueError:
        raise config.error(
            "global.old_private_keys", "A public key is not base64.", "Copy it anew, or name the file of the key."
        ) from None


def perspectives(config: Config) -> list[Perspective]:
    """The notaries; `ConfigError` for a key that is none."""
    found = []
    for index, one in enumerate(config.federation_api.key_perspectives):
        try:
            found.append(perspective(one.server_name, [(key.key_id, key.public_key) for key in one.keys]))
        except ValueError as error:
            raise config.error(
                f"federation_api.key_perspectives[{index}]",
                f"A public key of {one.server_name[:100]} cannot be read: {error}.",
                "Public keys are 32 bytes in unpadded base64.",
            ) from None
    return found
