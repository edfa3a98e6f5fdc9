"""From YAML text to the typed tree, as forgiving as Dendrite and more talkative.

Dendrite's parser ignores unknown keys, takes any plain scalar for text and leaves an absent key at its
default; so do we.  But each key keeps its line, so that whatever is doubtful can be named: an unknown key
with the nearest known one, a key given twice, a value of the wrong type.  A key without a value keeps its
default.

Size, depth, number of nodes and aliases are bounded before anything is built.
"""

from __future__ import annotations

import math
import os
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml

from dendrite_tw.config.problems import ConfigError, Problem
from dendrite_tw.config.tree import Field, Section, Tree, Unit, fields
from dendrite_tw.config.units import parse_duration, parse_size

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_NODES = 100_000
MAX_ALIASES = 1_000

S = TypeVar("S", bound=Section)

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NULL = "tag:yaml.org,2002:null"
_MERGE = "tag:yaml.org,2002:merge"
_TRUE = frozenset({"y", "yes", "true", "on"})
_FALSE = frozenset({"n", "no", "false", "off"})

_UNQUOTED = ("true or false", "a whole number")

OLD_KEYS = {
    "global.kafka": "Kafka gave way to JetStream; see global.jetstream.",
    "global.server_notices.avatar": "It is called global.server_notices.avatar_url now.",
    "federation_sender": "It is part of federation_api now.",
    "signing_key_server": "It is part of federation_api now.",
    "edu_server": "It is part of user_api and sync_api now.",
    "federation_api.federation_certificates": "Certificates are checked against the system's authorities.",
    "federation_api.proxy_outbound": "Requests are sent without a proxy.",
    "federation_sender.proxy_outbound": "Requests are sent without a proxy.",
    "user_api.device_database": "Devices are kept in user_api.account_database.",
    "sync_api.fulltext": "It is called sync_api.search now.",
    "app_service_api.database": "This component keeps nothing in a database of its own.",
    "client_api.captcha_bypass_secret": "It is called client_api.recaptcha_bypass_secret.",
}


class _UnfitError(Exception):
    """A value that does not fit: what it is instead, and how it should look."""


class Reader:
    """Reads one file; afterwards `problems` holds all findings and `lines` where each key stands.

    ``base`` is the directory against which relative paths are resolved; ``None`` leaves them as they are.
    """

    def __init__(self, path: str, base: str | None) -> None:
        self.path = path
        self.base = base
        self.problems: list[Problem] = []
        self.lines: dict[str, int] = {}
        self._visited = 0

    def read(self, text: str) -> Tree:
        """The tree of a document; keys with unfit values keep their defaults and are in `problems`."""
        node = self._compose(text)
        if node is None:
            return Tree()
        self._check_version(node)
        return self.section(Tree, node, "", 0)

    def _compose(self, text: str) -> yaml.Node | None:
        if len(text) > MAX_BYTES:
            self._refuse(0, f"The file is longer than {MAX_BYTES} characters.")
        try:
            self._check_bounds(text)
            loader = _Loader(text)
            try:
                node: yaml.Node | None = loader.get_node() if loader.check_node() else None
                if node is not None and loader.check_node():
                    second = loader.get_node()
                    self._note("", second, "Only the first document of this file is read.")
            finally:
                loader.dispose()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            said = ", ".join(part for part in (error.context, error.problem) if part)
            line = mark.line + 1 if mark else 0
            self._refuse(line, f"This is not YAML: {said}.", "Check indentation and quotes.")
        except (yaml.YAMLError, ValueError) as error:
            self._refuse(0, f"This is not YAML: {str(error).splitlines()[0]}.")
        return node

    def _check_bounds(self, text: str) -> None:
        depth = aliases = 0
        for nodes, event in enumerate(yaml.parse(text, Loader=_Loader)):
            if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
                depth += 1
            elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
                depth -= 1
            elif isinstance(event, yaml.AliasEvent):
                aliases += 1
            if depth > MAX_DEPTH or nodes > MAX_NODES or aliases > MAX_ALIASES:
                self._refuse(_line(event), "The file is nested too deeply or has too many entries.")

    def _check_version(self, node: yaml.Node) -> None:
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            found = value.value if isinstance(value, yaml.ScalarNode) else "something else"
            if key.value == "version" and (found != "2" or value.style):
                self._refuse(
                    _line(value),
                    f"This file has version {found!s:.20} of the format, but version 2 is needed.",
                    "Between versions keys were moved and renamed: write a new file with "
                    '"generate-config" and carry your values over, comparing with conf/dendrite-sample.yaml.',
                    "version",
                )

    def _refuse(self, line: int, text: str, remedy: str = "", key: str = "") -> None:
        raise ConfigError(self.path, [Problem("error", key, text, remedy, line)])

    def _note(self, key: str, node: yaml.Node, text: str, remedy: str = "") -> None:
        self.problems.append(Problem("note", key, text, remedy, _line(node)))

    def section(self, kind: type[S], node: yaml.Node, path: str, depth: int) -> S:
        """An instance of ``kind`` from a mapping; ``path`` is the key that holds it."""
        if _is_null(node):
            return kind()
        if not isinstance(node, yaml.MappingNode):
            self._ill_typed(path, node, "a section with keys of its own")
            return kind()
        known = {field.name: field for field in fields(kind)}
        values: dict[str, Any] = {}
        for name, key_node, value in self._pairs(node, depth):
            where = f"{path}.{name}" if path else name
            field = known.get(name)
            if field is None:
                self._unknown(kind, name, where, key_node)
                continue
            if where in self.lines:
                self.problems.append(
                    Problem(
                        "duplicate",
                        where,
                        f"This key is given twice, first on line {self.lines[where]}; the last one counts.",
                        "Keep one of them.",
                        _line(key_node),
                    )
                )
            self.lines[where] = _line(key_node)
            if not _is_null(value):
                values[field.attribute] = self._value(field, value, where, depth + 1)
        return kind(**values)

    def _pairs(self, node: yaml.Node, depth: int) -> list[tuple[str, yaml.Node, yaml.Node]]:
        """Name, key node and value node of each entry; merged ones (``<<``) first unless overridden."""
        if not isinstance(node, yaml.MappingNode) or depth > MAX_DEPTH:
            return []
        own: list[tuple[str, yaml.Node, yaml.Node]] = []
        merged: list[tuple[str, yaml.Node, yaml.Node]] = []
        for key, value in node.value:
            self._visited += 1
            if self._visited > MAX_NODES:
                self._refuse(_line(key), "The aliases of this file unfold into too many entries.")
            if key.tag == _MERGE:
                sources = value.value if isinstance(value, yaml.SequenceNode) else [value]
                for source in sources:
                    merged.extend(self._pairs(source, depth + 1))
            elif isinstance(key, yaml.ScalarNode):
                own.append((key.value, key, value))
            else:
                self._note("", key, "A key must be a word.")
        if not merged:
            return own
        taken = {name for name, _, _ in own}
        first: dict[str, tuple[str, yaml.Node, yaml.Node]] = {}
        for pair in merged:
            if pair[0] not in taken:
                first.setdefault(pair[0], pair)
        return [*first.values(), *own]

    def _unknown(self, kind: type[Section], name: str, where: str, node: yaml.Node) -> None:
        if where in OLD_KEYS:
            text = "This key of an older version has no effect."
            self.problems.append(Problem("old", where, text, OLD_KEYS[where], _line(node)))
            return
        near = nearest_key(kind, name, where)
        remedy = f"Did you mean {near}?" if near else "Remove it, or see docs/configuration.md."
        self.problems.append(Problem("unknown", where, "There is no such key.", remedy, _line(node)))

    def _ill_typed(self, path: str, node: yaml.Node, wanted: str, secret: bool = False) -> None:
        text = f"This must be {wanted}, not {_describe(node, secret)}."
        remedy = ""
        if isinstance(node, yaml.ScalarNode) and node.style in ("'", '"') and wanted in _UNQUOTED:
            remedy = "Remove the quotes."
        self.problems.append(Problem("error", path, text, remedy, _line(node)))

    def _value(self, field: Field, node: yaml.Node, where: str, depth: int) -> Any:
        try:
            value = self._convert(field.type, field.unit, node, where, depth)
            self._check_range(field, value)
        except _UnfitError as bad:
            self._ill_typed(where, node, str(bad), field.key.secret)
            return field.default
        return value

    def _check_range(self, field: Field, value: Any) -> None:
        key = field.key
        if key.at_least is not None and value < key.at_least:
            raise _UnfitError(f"at least {key.at_least}")
        if key.at_most is not None and value > key.at_most:
            raise _UnfitError(f"at most {key.at_most}")

    def _convert(self, kind: Any, unit: str, node: yaml.Node, where: str, depth: int) -> Any:
        while hasattr(kind, "__metadata__"):
            unit = next((mark.name for mark in kind.__metadata__ if isinstance(mark, Unit)), unit)
            kind = kind.__origin__
        if get_origin(kind) is tuple:
            return self._list(get_args(kind)[0], unit, node, where, depth)
        if isinstance(kind, type) and issubclass(kind, Section):
            return self.section(kind, node, where, depth)
        if kind is Any:
            return self._free(node, depth)
        if get_origin(kind) is dict:
            if not isinstance(node, yaml.MappingNode):
                raise _UnfitError("a section with keys of its own")
            return self._free(node, depth)
        if not isinstance(node, yaml.ScalarNode):
            raise _UnfitError("a single value")
        if unit in ("duration", "size"):
            return self._with_unit(unit, node, where)
        if get_origin(kind) is Literal:
            return _choice(get_args(kind), node)
        if kind is bool:
            return _boolean(node)
        if kind is int:
            return _integer(node)
        if unit == "path" and self.base is not None and node.value:
            return os.path.normpath(os.path.join(self.base, node.value))  # noqa: PTH118
        return node.value

    def _list(self, kind: Any, unit: str, node: yaml.Node, where: str, depth: int) -> tuple[Any, ...]:
        if not isinstance(node, yaml.SequenceNode):
            raise _UnfitError("a list, one item a line behind a dash")
        items = []
        for index, item in enumerate(node.value):
            place = f"{where}[{index}]"
            self.lines[place] = _line(item)
            if _is_null(item) and kind is not Any:
                continue
            try:
                items.append(self._convert(kind, unit, item, place, depth + 1))
            except _UnfitError as bad:
                self._ill_typed(place, item, str(bad))
        return tuple(items)

    def _with_unit(self, unit: str, node: yaml.ScalarNode, where: str) -> float | int:
        if unit == "size":
            try:
                return parse_size(node.value)
            except ValueError:
                raise _UnfitError("a size such as 512mb, 1.5gb or 10485760") from None
        if not node.value:
            return 0.0
        if not node.style and node.tag.endswith(":int"):
            nanoseconds = _integer(node)
            if nanoseconds:
                self._note(
                    where,
                    node,
                    f"A bare number counts nanoseconds, so this is {nanoseconds / 1e9:g} seconds.",
                    f"Write a unit: {node.value}s, {node.value}m or {node.value}h.",
                )
            return nanoseconds / 1e9
        try:
            return parse_duration(node.value)
        except ValueError:
            raise _UnfitError("a duration such as 168h0m0s, 5m or 300ms") from None

    def _free(self, node: yaml.Node, depth: int) -> Any:
        """Plain Python values where the tree has no types."""
        if depth > MAX_DEPTH:
            raise _UnfitError("nested less deeply")
        self._visited += 1
        if self._visited > MAX_NODES:
            self._refuse(_line(node), "The aliases of this file unfold into too many entries.")
        if isinstance(node, yaml.MappingNode):
            return {name: self._free(value, depth + 1) for name, _, value in self._pairs(node, depth)}
        if isinstance(node, yaml.SequenceNode):
            return [self._free(item, depth + 1) for item in node.value]
        if _is_null(node):
            return None
        return _plain_value(node) if isinstance(node, yaml.ScalarNode) else None


def _line(node: yaml.Node | yaml.Event) -> int:
    mark = node.start_mark
    return mark.line + 1 if mark else 0


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == _NULL


def _describe(node: yaml.Node, secret: bool) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a section"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return "what stands here" if secret else repr(node.value[:60])


def _is_plain(node: yaml.ScalarNode, tag: str) -> bool:
    return not node.style or node.tag == f"tag:yaml.org,2002:{tag}"


def _boolean(node: yaml.ScalarNode) -> bool:
    word = node.value.lower()
    if _is_plain(node, "bool") and word in _TRUE:
        return True
    if _is_plain(node, "bool") and word in _FALSE:
        return False
    raise _UnfitError("true or false")


def _integer(node: yaml.ScalarNode) -> int:
    text = node.value.replace("_", "")
    if _is_plain(node, "int") and len(text) < 40:
        try:
            digits = text.lstrip("+-")
            octal = len(digits) > 1 and digits[0] == "0" and digits.isdigit()
            value = int(text, 8 if octal else 0)
        except ValueError:
            number = _number(node)
            if not number.is_integer():
                raise _UnfitError("a whole number") from None
            value = int(number)
        if -(2**63) <= value < 2**63:
            return value
    raise _UnfitError("a whole number")


def _number(node: yaml.ScalarNode) -> float:
    if _is_plain(node, "float"):
        try:
            value = float(node.value.replace("_", ""))
        except ValueError:
            pass
        else:
            if math.isfinite(value):
                return value
    raise _UnfitError("a whole number")


def _plain_value(node: yaml.ScalarNode) -> Any:
    for convert in (_boolean, _integer, _number):
        try:
            return convert(node)
        except _UnfitError:
            continue
    return node.value


def _choice(choices: tuple[str, ...], node: yaml.ScalarNode) -> str:
    for word in (node.value, node.value.lower()):
        if word in choices:
            return str(word)
    raise _UnfitError("one of " + ", ".join(choices))


def nearest_key(kind: type[Section], name: str, where: str) -> str:
    """The known key that was probably meant, as a full path; empty if none is near.

    Siblings come first, then a key of exactly that name elsewhere in the tree.
    """
    import difflib  # of use only where a name is wrong

    parent = where.rpartition(".")[0]
    siblings = [field.name for field in fields(kind)]
    close = difflib.get_close_matches(name, siblings, n=1, cutoff=0.75)
    if close:
        return f"{parent}.{close[0]}" if parent else close[0]
    everywhere = [path for path in all_keys() if path.rpartition(".")[2] == name]
    if everywhere:
        return " or ".join(everywhere[:3])
    close = difflib.get_close_matches(name, siblings, n=1, cutoff=0.5)
    if close:
        return f"{parent}.{close[0]}" if parent else close[0]
    close = difflib.get_close_matches(where, all_keys(), n=1, cutoff=0.75)
    return close[0] if close else ""


def all_keys(kind: type[Section] = Tree, prefix: str = "") -> list[str]:
    """Every known key as a dotted path; list items are ``key[].name``."""
    found = []
    for field in fields(kind):
        path = f"{prefix}{field.name}"
        found.append(path)
        inner, suffix = field.type, "."
        if get_origin(inner) is tuple:
            inner, suffix = get_args(inner)[0], "[]."
        if isinstance(inner, type) and issubclass(inner, Section):
            found.extend(all_keys(inner, path + suffix))
    return found
