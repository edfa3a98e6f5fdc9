"""``dendrite``: the server in the foreground, and the tools as words behind it.

``dendrite --config dendrite.yaml`` serves until SIGINT or SIGTERM.  It is the service of ``twistd dendrite`` under
Twisted's own application machinery, without the search for plugins and with Dendrite's flags.
"""

from __future__ import annotations

import importlib
import sys

from dendrite_tw.commands.goflags import FlagSet

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
    from dendrite_tw.tap import Settings, version_text

    default = Settings()
    flags = FlagSet("dendrite", _INTRODUCTION)
    version = flags.boolean("version", "Print the version and exit")
    open_registration = flags.boolean(
        "really-enable-open-registration", "Allow open registration without any check; invites spam"
    )
    texts = {
        "config": flags.string("config", default.config, "The configuration file"),
        "http_bind_address": flags.string("http-bind-address", default.http_bind_address, "Where to listen for HTTP"),
        "https_bind_address": flags.string(
            "https-bind-address", default.https_bind_address, "Where to listen for HTTPS, given -tls-cert"
        ),
        "tls_cert": flags.string("tls-cert", "", "Certificate chain for HTTPS, in PEM format"),
        "tls_key": flags.string("tls-key", "", "Key of that certificate, in PEM format"),
        "unix_socket": flags.string("unix-socket", "", "Listen on this unix socket instead of TCP"),
        "unix_socket_permission": flags.string(
            "unix-socket-permission", default.unix_socket_permission, "Permissions of it, in octal"
        ),
    }
    http_api = flags.boolean("api", "Of former versions; has no effect")
    api_address = flags.string("api-bind-address", "", "Of former versions; has no effect")
    flags.parse_only(arguments)
    if version.value:
        print(version_text())
        return 0
    if http_api.value or api_address.value:
        print("dendrite: -api and -api-bind-address have no effect.", file=sys.stderr)
    return run(
        Settings(
            **{name: flag.value for name, flag in texts.items()},
            really_enable_open_registration=open_registration.value,
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
