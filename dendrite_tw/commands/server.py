"""``dendrite``: the server in the foreground, and the tools as words behind it.

``dendrite --config dendrite.yaml`` serves until SIGINT or SIGTERM.  It is the service of ``twistd dendrite`` under
Twisted's own application machinery, without the search for plugins and with Dendrite's flags.
"""

from __future__ import annotations

import importlib
import sys

from dendrite_tw.commands.goflags import FlagSet
from dendrite_tw.components import sections_named

TOOLS = {
    "check-config": "check_config",
    "create-account": "create_account",
    "generate-config": "generate_config",
    "generate-keys": "generate_keys",
}

_INTRODUCTION = f"""\
Serves Matrix: dendrite [flags]
Runs a tool:   dendrite TOOL [flags], where TOOL is one of {", ".join(TOOLS)}"""


def main(arguments: list[str] | None = None) -> int:
    """Run the server, or the tool that the first word names; the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    if words and words[0] in TOOLS:
        tool = importlib.import_module(f"dendrite_tw.commands.{TOOLS[words[0]]}")
        code: int = tool.main(words[1:])
        return code
    return serve(words)


def serve(arguments: list[str]) -> int:
    """Read the flags and serve; returns when the server has stopped."""
    flags = ServerFlags("dendrite", _INTRODUCTION)
    component = flags.set.string("component", "", "Run only these components, separated by commas; needs NATS")
    http_api = flags.set.boolean("api", "Of former versions; has no effect")
    api_address = flags.set.string("api-bind-address", "", "Of former versions; has no effect")
    flags.set.parse_only(arguments)
    if http_api.value or api_address.value:
        print("dendrite: -api and -api-bind-address have no effect.", file=sys.stderr)
    try:
        sections = sections_named([component.value])
    except ValueError as error:
        flags.set.fail(str(error))
    return flags.serve(sections)


class ServerFlags:
    """The flags of everything that serves; `set` may be given more before it is parsed."""

    def __init__(self, program: str, introduction: str) -> None:
        self.set = FlagSet(program, introduction)
        self.version = self.set.boolean("version", "Print the version and exit")
        self._open_registration = self.set.boolean(
            "really-enable-open-registration", "Allow open registration without any check; invites spam"
        )
        text = self.set.string
        self._texts = {
            "config": text("config", "dendrite.yaml", "The configuration file"),
            "http_bind_address": text(
                "http-bind-address", "", "Where to listen for HTTP: by default :8008, or where the file says"
            ),
            "https_bind_address": text("https-bind-address", ":8448", "Where to listen for HTTPS, given -tls-cert"),
            "tls_cert": text("tls-cert", "", "Certificate chain for HTTPS, in PEM format"),
            "tls_key": text("tls-key", "", "Key of that certificate, in PEM format"),
            "unix_socket": text("unix-socket", "", "Listen on this unix socket instead of TCP"),
            "unix_socket_permission": text("unix-socket-permission", "755", "Permissions of it, in octal"),
        }

    def serve(self, sections: tuple[str, ...] = ()) -> int:
        """Serve as the flags say, once they are parsed: the components of these sections, or all; the exit code."""
        from dendrite_tw.tap import Settings, version_text

        if self.version.value:
            print(version_text())
            return 0
        return run(
            Settings(
                **{name: flag.value for name, flag in self._texts.items()},
                really_enable_open_registration=self._open_registration.value,
                components=sections,
            )
        )


def run(settings: object) -> int:
    """Serve in the foreground until a signal; 1 if the server cannot start."""
    from twisted.application.app import startApplication
    from twisted.application.service import Application
    from twisted.logger import globalLogBeginner

    from dendrite_tw import logs, tap
    from dendrite_tw.config import ConfigError

    assert isinstance(settings, tap.Settings)
    globalLogBeginner.beginLoggingTo([logs.standard_output()], redirectStandardIO=False)
    from twisted.internet import reactor

    try:
        service = tap.make_service(settings)
        application = Application("dendrite")
        service.setServiceParent(application)
        startApplication(application, False)
    except (ConfigError, tap.StartError) as error:
        print(error, file=sys.stderr)
        return 1
    reactor.run()
    return service.exit_code
