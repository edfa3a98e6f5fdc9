"""An nginx configuration for a polylith, written from the table of routes.

`dispatch` turns the rows of all components into as few patterns as tell them apart, and `render` puts them into a file.
Nothing depends on a pattern being right, since every process passes on what it does not serve itself; but what nginx
sends to the right one at once costs one hop less.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set

import msgspec

from .web.routes import Route

DEFAULT = "client_api"
"""Who is asked what no pattern matches."""

_ANY = r"\S+"
_PARAMETER = re.compile(r"^\{[a-z_]+\}$")


class Rule(msgspec.Struct, frozen=True):
    """A pattern over ``METHOD /path?query``, and who serves what it matches and no rule before it does."""

    pattern: str
    component: str


class Site(msgspec.Struct, frozen=True):
    """What nginx is to serve: under which names and with which files, and where the processes of each component are.

    ``upstreams``: component -> ``host:port`` or ``unix:/path``, each at least one.  ``listen``: addresses without TLS
    instead of ports 443 and 8448, where something else does TLS.  ``largest_body``: bytes, 0 = no limit.
    """

    server_name: str
    host: str
    upstreams: Mapping[str, Sequence[str]]
    largest_body: int
    certificate: str = ""
    key: str = ""
    listen: Sequence[str] = ()


# --- rules ---


class _Node:
    """A level of the tree of path segments: components by method here, and what is below."""

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.parameter: _Node | None = None
        self.methods: dict[str, str] = {}

    def add(self, parts: Sequence[str], method: str, component: str) -> None:
        node = self
        for part in parts:
            if _PARAMETER.match(part):
                node.parameter = node = node.parameter or _Node()
            else:
                node = node.children.setdefault(part, _Node())
        node.methods[method] = component

    def all(self) -> Iterator[tuple[str, str]]:
        """Method and component of every row here and below."""
        yield from self.methods.items()
        for child in [*self.children.values(), *([self.parameter] if self.parameter else ())]:
            yield from child.all()


def dispatch(rows: Mapping[str, Sequence[Route]]) -> list[Rule]:
    """The rules that send every row (component -> rows) to its component; what none of them matches is `DEFAULT`'s."""
    root = _Node()
    twice = _with_old_paths({(row.method, row.path) for routes in rows.values() for row in routes})
    for component, routes in rows.items():
        for row in routes:
            if not any(row.path.startswith(f"{base}/r0/") for base in twice):
                root.add(_parts(row.path, twice), row.method, component)
    return list(_rules(root, "", DEFAULT))


def _with_old_paths(paths: Set[tuple[str, str]]) -> list[str]:
    """The beginnings under which everything is called ``/v3/`` and ``/r0/`` alike."""
    bases = sorted({path.partition("/v3/")[0] for _, path in paths if "/v3/" in path})
    found = []
    for base in bases:
        new = {(method, path.removeprefix(f"{base}/v3/")) for method, path in paths if path.startswith(f"{base}/v3/")}
        old = {(method, path.removeprefix(f"{base}/r0/")) for method, path in paths if path.startswith(f"{base}/r0/")}
        if new == old:
            found.append(base)
    return found


def _parts(path: str, twice: Sequence[str]) -> list[str]:
    """The segments of a path as patterns."""
    parts = [part if _PARAMETER.match(part) else re.escape(part) for part in path.split("/")[1:]]
    for base in twice:
        if path.startswith(f"{base}/v3/"):
            parts[base.count("/")] = "(r0|v3)"
    return parts


def _rules(node: _Node, prefix: str, otherwise: str | None) -> Iterator[Rule]:
    """The rules for what begins with `prefix`; ``otherwise`` gets what they leave over, `None` = nothing may be."""
    by_method: dict[str, set[str]] = {}
    for method, component in node.all():
        by_method.setdefault(method, set()).add(component)
    if all(len(components) == 1 for components in by_method.values()):
        yield from _split({method: min(components) for method, components in by_method.items()}, prefix, otherwise)
        return
    most = Counter(component for _, component in node.all()).most_common(1)[0][0]
    if prefix.count("/") < 2:
        most = DEFAULT
    below = list(_rules(node.parameter, f"{prefix}/[^/?]+", most)) if node.parameter else []
    for name, child in sorted(node.children.items()):
        # What a parameter's patterns would match too has to be said first.
        yield from _rules(child, f"{prefix}/{name}", None if below else most)
    yield from below
    for method, component in node.methods.items():
        if component != most:
            yield Rule(f"^{_methods([method])} {prefix}(\\?|$)", component)
    if most != otherwise and prefix:
        yield Rule(f"^{_ANY} {prefix}(/|\\?|$)", most)


def _split(component_of: Mapping[str, str], prefix: str, otherwise: str | None) -> Iterator[Rule]:
    """Rules for a subtree in which the method alone says whose a request is."""
    components = sorted(set(component_of.values()))
    for component in components:
        if component != otherwise:
            methods = [method for method, one in component_of.items() if one == component]
            yield Rule(f"^{_methods(methods) if len(components) > 1 else _ANY} {prefix}(/|\\?|$)", component)


def _methods(methods: Sequence[str]) -> str:
    """A pattern for these; where GET is answered, HEAD is."""
    both = sorted({*methods, *(["HEAD"] if "GET" in methods else ())})
    return f"({'|'.join(both)})" if len(both) > 1 else both[0]


def component_of(rules: Sequence[Rule], method: str, target: str) -> str:
    """Whom nginx will ask for this request; ``target`` is the path, with a query perhaps, as the client sent it."""
    for rule in rules:
        if re.search(rule.pattern, f"{method} {target}"):
            return rule.component
    return DEFAULT


# --- the file ---

_HEADER = """\
# nginx in front of a polylith, written by dendrite-generate-nginx from the server's table of routes.
#
# Write it anew after an upgrade and whenever processes are added. An old one keeps working, for every process passes on
# what it does not serve itself. Put it into /etc/nginx/sites-enabled/, then: nginx -t && systemctl reload nginx
"""

_SETTINGS = """\
        proxy_pass http://$dendrite;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Host $host;
        proxy_set_header X-Forwarded-For $remote_addr;
        proxy_set_header X-Forwarded-Proto $scheme;
        # A sync waits as long as the client asks, a join of a big room takes its time.
        proxy_read_timeout 600s;
        proxy_send_timeout 600s;
        # Uploads and downloads go through as they come.
        proxy_request_buffering off;
        proxy_max_temp_file_size 0;
        # A process that is away is passed over; what may have been carried out already is not asked twice.
        proxy_connect_timeout 5s;
        proxy_next_upstream error timeout;
        proxy_next_upstream_tries 3;
"""


def render(rules: Sequence[Rule], site: Site) -> str:
    """The text of the file."""
    parts = [_HEADER, *(_upstream(component, site.upstreams[component]) for component in sorted(site.upstreams))]
    parts += [_map(rules), _server(site)]
    if site.host != site.server_name:
        parts.append(_delegation(site))
    return "\n".join(parts)


def group(component: str) -> str:
    """The name of a component's processes in the file."""
    return f"dendrite_{component}"


def _upstream(component: str, addresses: Sequence[str]) -> str:
    lines = [f"upstream {group(component)} {{"]
    if component == "sync_api" and len(addresses) > 1:
        lines.append("    # A device stays with one process, which has in memory what it asks for.")
        lines.append("    hash $http_authorization consistent;")
    lines += [f"    server {address} max_fails=1 fail_timeout=1s;" for address in addresses]
    return "\n".join([*lines, "    keepalive 64;", "}", ""])


def _map(rules: Sequence[Rule]) -> str:
    lines = [
        "# Who serves what. The first pattern that matches counts.",
        'map "$request_method $request_uri" $dendrite {',
    ]
    lines.append(f"    default {group(DEFAULT)};")
    width = max((len(rule.pattern) for rule in rules), default=0) + 3
    lines += [f"    {_quoted(rule.pattern):<{width + 1}} {group(rule.component)};" for rule in rules]
    return "\n".join([*lines, "}", ""])


def _quoted(pattern: str) -> str:
    return f'"~{pattern}"'


def _listen(site: Site, ports: Sequence[int]) -> list[str]:
    if site.listen:
        return [f"    listen {address};" for address in site.listen]
    lines = []
    for port in ports:
        if port == 8448:
            lines.append("    # Where other servers look that find no delegation.")
        lines += [f"    listen {port} ssl http2;", f"    listen [::]:{port} ssl http2;"]
    return lines


def _tls(site: Site) -> list[str]:
    if site.listen:
        return []
    return [
        f"    ssl_certificate {site.certificate};",
        f"    ssl_certificate_key {site.key};",
        "    ssl_protocols TLSv1.2 TLSv1.3;",
        "    ssl_session_cache shared:dendrite:10m;",
        "",
    ]


def _server(site: Site) -> str:
    return "\n".join(
        [
            "server {",
            *_listen(site, (443, 8448)),
            f"    server_name {site.host};",
            "",
            *_tls(site),
            "    # At least media_api.max_file_size_bytes; 0 = no limit here.",
            f"    client_max_body_size {_size(site.largest_body)};",
            "",
            r"    location ~ ^/(_matrix|_synapse|_dendrite|\.well-known/matrix)(/|$) {",
            _SETTINGS.rstrip("\n"),
            "    }",
            "",
            "    location / {",
            "        return 404;",
            "    }",
            "}",
            "",
        ]
    )


def _delegation(site: Site) -> str:
    return "\n".join(
        [
            f"# Delegation from {site.server_name} itself. Leave it out if something else serves that name;",
            "# it has to answer these paths then.",
            "server {",
            *_listen(site, (443,)),
            f"    server_name {site.server_name};",
            "",
            *_tls(msgspec.structs.replace(site, **_own_certificate(site))),
            "    location /.well-known/matrix/ {",
            _SETTINGS.rstrip("\n"),
            "    }",
            "}",
            "",
        ]
    )


def _own_certificate(site: Site) -> dict[str, str]:
    """The certificate of the domain is beside that of the host."""
    return {
        "certificate": site.certificate.replace(site.host, site.server_name),
        "key": site.key.replace(site.host, site.server_name),
    }


def _size(count: int) -> str:
    """Bytes in nginx's way, not less than they are."""
    return f"{-(-count // 2**20)}m" if count else "0"
