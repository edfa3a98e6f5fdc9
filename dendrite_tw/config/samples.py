"""Configuration files and the reference manual, written from the tree's own types and sentences.

`sample` and `polylith_sample` are the files in ``conf/``, `generate_config` is what the command of that name
prints, `reference` is the table of keys in ``docs/configuration.md``.  A test holds the stored files to these
functions; ``python -m dendrite_tw.config --write-samples`` writes them anew.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

import msgspec
import yaml

from dendrite_tw.config.checks import DATABASES, NOT_YET
from dendrite_tw.config.tree import (
    NOTHING,
    ComponentDatabase,
    Database,
    ExternalApi,
    Field,
    InternalApi,
    LogHook,
    Section,
    Tree,
    fields,
)
from dendrite_tw.config.units import format_duration, format_size

WIDTH = 90

# The name of each component's database, as Dendrite's own tools have it.
DATABASE_NAMES = {
    "room_server": "roomserver",
    "user_api": "userapi",
    "key_server": "keyserver",
    "sync_api": "syncapi",
    "media_api": "mediaapi",
    "federation_api": "federationapi",
    "relay_api": "relayapi",
    "mscs": "mscs",
}

# Component -> port for other components, port for clients and servers (0 = none), connections to PostgreSQL.
POLYLITH = {
    "room_server": (7770, 0, 10),
    "client_api": (7771, 8071, 0),
    "federation_api": (7772, 8072, 10),
    "sync_api": (7773, 8073, 10),
    "media_api": (7774, 8074, 5),
    "app_service_api": (7777, 0, 0),
    "key_server": (7779, 0, 10),
    "user_api": (7781, 0, 10),
}

_HEADER = """\
Configuration of dendrite_tw, in the format of Dendrite's dendrite.yaml, version 2.

Each key is described above it; docs/configuration.md has all of them in tables. Relative paths are
relative to the directory in which the server is started. Durations are written as 168h0m0s, 5m or 300ms,
sizes as 512mb or 1gb. After a change, "dendrite check-config --config FILE" looks for mistakes, and a restart
of the server makes it take effect."""

_POLYLITH_NOTE = """

This is for a polylith deployment: every component is a process of its own, or several, NATS with JetStream runs
beside them, and PostgreSQL holds a database for each. docs/polylith.md tells how to set it up. Most servers are
better off with conf/dendrite-sample.yaml."""


def sample_tree(section: type[Section] = Tree) -> Any:
    """A section with the values that the samples show."""
    values: dict[str, Any] = {}
    for field in fields(section):
        if field.key.sample is not NOTHING:
            values[field.attribute] = field.key.sample
        elif isinstance(field.type, type) and issubclass(field.type, Section):
            values[field.attribute] = sample_tree(field.type)
    return section(**values)


def changed(tree: Tree, values: Mapping[str, Any]) -> Tree:
    """The tree with other values at dotted keys."""
    for path, value in values.items():
        tree = _replaced(tree, path.split("."), value)
    return tree


def _replaced(section: Any, names: list[str], value: Any) -> Any:
    attribute = next(field.attribute for field in fields(type(section)) if field.name == names[0])
    if len(names) > 1:
        value = _replaced(getattr(section, attribute), names[1:], value)
    return msgspec.structs.replace(section, **{attribute: value})


def sample() -> str:
    """``conf/dendrite-sample.yaml``."""
    return render(sample_tree(), _HEADER)


def polylith_sample() -> str:
    """``conf/dendrite-sample.polylith.yaml``."""
    return render(changed(sample_tree(), _polylith("hostname:4222")), _HEADER + _POLYLITH_NOTE)


def _polylith(nats: str) -> dict[str, Any]:
    """What a polylith's file has of its own: the NATS servers, separated by commas, ports and databases."""
    values: dict[str, Any] = {
        "global.database": Database(),
        "global.jetstream.addresses": tuple(address.strip() for address in nats.split(",")),
    }
    for component, (internal, external, pool) in POLYLITH.items():
        values[f"{component}.internal_api"] = InternalApi(
            listen=f"http://[::]:{internal}", connect=f"http://{component}:{internal}"
        )
        if external:
            values[f"{component}.external_api"] = ExternalApi(listen=f"http://[::]:{external}")
        if pool:
            values[DATABASES[component]] = _postgresql(component, pool)
    values[DATABASES["mscs"]] = _postgresql("mscs", 5)
    return values


def _postgresql(component: str, pool: int) -> ComponentDatabase:
    name = f"dendrite_{DATABASE_NAMES[component]}"
    uri = f"postgresql://username:password@hostname/{name}?sslmode=disable"
    return ComponentDatabase(connection_string=uri, max_open_conns=pool)


def generate_config(
    server_name: str = "localhost",
    database: str = "",
    directory: str = "./",
    *,
    ci: bool = False,
    private_key: str = "matrix_key.pem",
    registration_shared_secret: str = "",
    nats: str = "",
) -> str:
    """The text of a configuration that starts as it is, given the signing key.

    ``database`` is a PostgreSQL URI for all components, a ``file:`` URI for each, or empty for SQLite files
    named after the components in ``directory``, where everything else is kept too.  ``ci`` makes it quick
    and open, for tests: such a server starts only with ``-really-enable-open-registration``.
    ``nats``, addresses separated by commas, makes it the file of a polylith, where without a ``database`` each
    component has the one of the sample.
    """
    values: dict[str, Any] = _polylith(nats) if nats else {}
    values |= {
        "global.server_name": server_name,
        "global.private_key": private_key,
        "global.database": Database(),
        "global.jetstream.storage_path": _join(directory, "jetstream"),
        "client_api.registration_shared_secret": registration_shared_secret,
        "media_api.base_path": _join(directory, "media"),
        "sync_api.search.index_path": _join(directory, "searchindex"),
        "logging": (LogHook(type="std", level="info"),),
    }
    if database and not database.startswith("file:"):
        values |= dict.fromkeys(DATABASES.values(), ComponentDatabase())
        values["global.database"] = Database(connection_string=database)
    elif database or not nats:
        for component, key in DATABASES.items():
            uri = database or "file:" + _join(directory, f"dendrite_{DATABASE_NAMES[component]}.db")
            values[key] = ComponentDatabase(connection_string=uri)
    if ci:
        values |= _for_tests()
    return render(changed(sample_tree(), values), _HEADER + (_POLYLITH_NOTE if nats else ""))


def _for_tests() -> dict[str, Any]:
    return {
        "app_service_api.disable_tls_validation": True,
        "client_api.rate_limiting.enabled": False,
        "client_api.registration_disabled": False,
        "client_api.registration_shared_secret": "complement",
        "federation_api.disable_http_keepalives": True,
        "federation_api.key_perspectives": (),
        "global.jetstream.in_memory": True,
        "global.presence.enable_inbound": True,
        "global.presence.enable_outbound": True,
        "logging": (LogHook(type="std", level="trace"),),
        "mscs.mscs": ("msc2836", "msc2444", "msc2753"),
        "sync_api.search.enabled": True,
        "sync_api.search.in_memory": True,
        "user_api.bcrypt_cost": 4,
    }


def _join(directory: str, name: str) -> str:
    """As Go's ``filepath.Join`` for the shapes that occur: ``./`` + ``media`` is ``media``."""
    stem = directory.rstrip("/") or ("/" if directory.startswith("/") else "")
    stem = stem.removeprefix("./") if stem != "." else ""
    return name if not stem else f"{stem.rstrip('/')}/{name}"


def render(tree: Tree, header: str = _HEADER) -> str:
    """The YAML of a tree, with a comment above each key."""
    lines = [*_comment(header, ""), ""]
    for field in fields(Tree):
        value = getattr(tree, field.attribute)
        lines += _entry(field, value, "", False)
        lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n"


def _comment(text: str, indent: str) -> Iterator[str]:
    for index, paragraph in enumerate(text.split("\n\n")):
        if index:
            yield f"{indent}#"
        for line in textwrap.wrap(paragraph, WIDTH - len(indent) - 2, break_on_hyphens=False):
            yield f"{indent}# {line}"


def _entry(field: Field, value: Any, indent: str, off: bool) -> Iterator[str]:
    """The lines of a key with its comment; ``off`` = inside something that is commented out already."""
    yield from _comment(field.key.doc, indent)
    hidden = not off and _hidden(field, value)
    if hidden and field.key.example is not NOTHING:
        value = field.key.example
    mark = f"{indent}# " if hidden else indent
    inner = "" if hidden else indent
    for line in _lines(field, value, inner, off or hidden):
        yield f"{mark}{line}" if hidden else line


def _skipped(field: Field, section: Section) -> bool:
    return field.key.polylith and getattr(section, field.attribute) == field.default


def _hidden(field: Field, value: Any) -> bool:
    if isinstance(value, Database):
        return not value.connection_string
    return field.key.commented and value == field.default


def _lines(field: Field, value: Any, indent: str, off: bool) -> Iterator[str]:
    if isinstance(value, Section):
        yield f"{indent}{field.name}:"
        shown = tuple(inner for inner in fields(type(value)) if not _skipped(inner, value))
        if off and value != field.default:
            shown = tuple(inner for inner in shown if getattr(value, inner.attribute) != inner.default)
        for inner in shown:
            given = getattr(value, inner.attribute)
            if off:
                yield from _lines(inner, given, indent + "  ", True)
                continue
            if not indent and inner is not shown[0]:
                yield ""
            yield from _entry(inner, given, indent + "  ", False)
    elif isinstance(value, tuple) and value:
        yield f"{indent}{field.name}:"
        yield from _items(value, indent)
    elif isinstance(value, tuple) and field.key.example is not NOTHING and not off:
        yield f"{indent}{field.name}:"
        for line in _items(field.key.example, ""):
            yield f"{indent}# {line}"
    elif isinstance(value, tuple):
        yield f"{indent}{field.name}: []"
    else:
        yield f"{indent}{field.name}: {_scalar(value, field.unit)}"


def _items(values: tuple[Any, ...], indent: str) -> Iterator[str]:
    for value in values:
        if not isinstance(value, Section):
            yield f"{indent}  - {_scalar(value, '')}"
            continue
        lead = "- "
        for field in fields(type(value)):
            given = getattr(value, field.attribute)
            if given == field.default and (field.key.commented or not given):
                continue
            if isinstance(given, dict):
                yield f"{indent}  {lead}{field.name}:"
                for name, one in given.items():
                    yield f"{indent}      {name}: {_scalar(one, '')}"
            elif isinstance(given, tuple):
                yield f"{indent}  {lead}{field.name}:"
                yield from _items(given, f"{indent}    ")
            else:
                yield f"{indent}  {lead}{field.name}: {_scalar(given, field.unit)}"
            lead = "  "


def _scalar(value: Any, unit: str) -> str:
    if unit == "duration":
        return format_duration(value)
    if unit == "size":
        return format_size(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return _text(value)
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()


def _text(value: str) -> str:
    plain = re.fullmatch(r"[A-Za-z0-9_./][A-Za-z0-9_./:?=&+~()@%-]*", value)
    if plain and not value.endswith(":") and yaml.safe_load(value) == value:
        return value
    quoted: str = yaml.safe_dump(value, default_style='"', allow_unicode=True, width=float("inf"))
    return quoted.removesuffix("\n")


def reference() -> str:
    """The tables of all keys, for ``docs/configuration.md``."""
    lines: list[str] = []
    for field in fields(Tree):
        if isinstance(field.type, type) and issubclass(field.type, Section):
            lines += [f"## {field.name}", "", field.key.doc, "", *_table(field.type, field.name), ""]
    lines += ["## logging", "", "A list of places where the log goes.", ""]
    lines += [*_table(LogHook, "logging[]"), ""]
    return "\n".join(lines)


def _table(section: type[Section], prefix: str) -> Iterator[str]:
    yield "| key | type | default | meaning |"
    yield "|---|---|---|---|"
    yield from _rows(section, prefix)


def _rows(section: type[Section], prefix: str) -> Iterator[str]:
    for field in fields(section):
        path = f"{prefix}.{field.name}"
        inner = field.type
        suffix = ""
        if get_origin(inner) is tuple:
            inner, suffix = get_args(inner)[0], "[]"
        if isinstance(inner, type) and issubclass(inner, Section):
            if suffix:
                yield f"| `{path}` | list | {_default(field)} | {_meaning(field, path)} |"
            yield from _rows(inner, path + suffix)
            continue
        yield f"| `{path}` | {_type_name(field)} | {_default(field)} | {_meaning(field, path)} |"


def _meaning(field: Field, path: str) -> str:
    said = NOT_YET.get(path) or NOT_YET.get(path.rpartition(".")[0], "")
    note = f" *{said}*" if said else ""
    return f"{field.key.doc}{note}".replace("|", "\\|")


def _default(field: Field) -> str:
    if isinstance(field.default, tuple):
        return ", ".join(f"`{item}`" for item in field.default) or "none"
    if field.default in ("", None) or field.default == {}:
        return "none"
    return f"`{_scalar(field.default, field.unit)}`"


def _type_name(field: Field) -> str:
    if field.unit:
        return field.unit
    if get_origin(field.type) is tuple:
        return "list"
    if get_origin(field.type) is Literal:
        return "word"
    names: dict[Any, str] = {bool: "true/false", int: "number", str: "text"}
    return names.get(field.type, "any")
