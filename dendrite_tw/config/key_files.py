"""The signing keys that a configuration names, read from their files.

`signing_key` is the key that signs; `old_verify_keys` are those that are only published any more.  Whatever is
wrong with a file is a `ConfigError` about the key in the configuration that names it.
"""

from __future__ import annotations

from pathlib import Path

from dendrite_tw.config import Config
from dendrite_tw.matrix.keys import KeyFormatError, OldVerifyKey, SigningKey, read_key_file


def signing_key(config: Config) -> SigningKey:
    """The key in ``global.private_key``; `ConfigError` if it cannot be read or is not one key."""
    path = config.global_.private_key
    keys = _read(config, "global.private_key", path, check_id=True)
    if len(keys) != 1:
        raise config.error(
            "global.private_key",
            f"{path} has {len(keys)} keys, but one is needed.",
            "Keep the current one there and put the others under old_private_keys.",
        )
    return keys[0]


def old_verify_keys(config: Config) -> tuple[OldVerifyKey, ...]:
    """The keys in ``global.old_private_keys``; `ConfigError` if a file cannot be read."""
    found = []
    for index, old in enumerate(config.global_.old_private_keys):
        if not old.private_key:
            found.append(OldVerifyKey(old.key_id, old.public_key.rstrip("="), old.expired_at))
            continue
        where = f"global.old_private_keys[{index}].private_key"
        for key in _read(config, where, old.private_key, check_id=False):
            found.append(OldVerifyKey(key.key_id, key.verify_key_base64, old.expired_at))
    return tuple(found)


def _read(config: Config, where: str, path: str, *, check_id: bool) -> list[SigningKey]:
    try:
        return read_key_file(Path(path).read_text(encoding="utf-8"), check_id=check_id)
    except OSError as error:
        raise config.error(
            where,
            f"{path} cannot be read: {error.strerror or error}.",
            f'Correct the path or the permissions, or make a key with "generate-keys --private-key {path}".',
        ) from None
    except (KeyFormatError, UnicodeDecodeError) as error:
        raise config.error(where, f"{path} is not a signing key: {error}.", "Is it the TLS key?") from None
