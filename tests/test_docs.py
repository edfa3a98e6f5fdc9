"""The manual says what the code does: samples, keys, flags, pins."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import re
from configparser import ConfigParser
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from dendrite_tw.commands.server import TOOLS
from dendrite_tw.components import SECTIONS, section_named
from dendrite_tw.config import loads
from dendrite_tw.config.__main__ import outputs
from dendrite_tw.config.checks import NOT_YET
from dendrite_tw.config.reader import all_keys
from dendrite_tw.tap import Options

ROOT = Path(__file__).parent.parent
MANUAL = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WITH_COMMANDS = [*MANUAL, *sorted((ROOT / "contrib").rglob("*.*")), ROOT / "conf" / "dendrite-sample.yaml"]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@functools.cache
def scripts() -> dict[str, str]:
    """The programs that are installed, and the function that each is."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options.entry_points"]["console_scripts"].strip().splitlines()
    return dict(line.split(" = ") for line in lines if not line.startswith("dendrite-nats-server"))


def flags_of(tool: str) -> set[str]:
    """The flags that a program's own usage lists."""
    module, _, name = scripts()[tool].partition(":")
    usage = io.StringIO()
    with contextlib.redirect_stderr(usage), contextlib.suppress(SystemExit):
        getattr(importlib.import_module(module), name)(["-help"])
    return set(re.findall(r"^  -([a-z-]+)", usage.getvalue(), re.MULTILINE))


def commands_in(text: str) -> list[list[str]]:
    """Command lines of our tools in a document, in words, beginning with the tool's name."""
    text = re.sub(r"\\\n[#\s]*", " ", text)
    pieces = re.findall(r"[\"`]([^\"`\n]*)[\"`]", text)
    for line in text.splitlines():
        pieces += re.sub(r"^[# ]*(Exec\w+=)?", "", line).split(" && ")
    found = []
    for piece in pieces:
        match = re.match(rf"(?:\S*/bin/)?((?:{'|'.join(scripts())})(?: .*)?)$", piece)
        words = re.split(r" +(?:[>|#] .*)?", match[1].strip()) if match else []
        if words[:1] == ["dendrite"] and words[1:2] and words[1] in TOOLS:
            words = words[1:]
        if words:
            found.append([word for word in words if word])
    return found


class Generated(SynchronousTestCase):
    def test_files_written_from_the_code_are_current(self) -> None:
        for path, text in outputs(ROOT).items():
            self.assertEqual(path.read_text(encoding="utf-8"), text, f"{path} is old: make samples")

    def test_every_key_is_in_the_reference(self) -> None:
        text = read("docs/configuration.md")
        sections = {key for key in all_keys() if any(other.startswith((f"{key}.", f"{key}[]")) for other in all_keys())}
        missing = [key for key in all_keys() if key not in sections and f"`{key}`" not in text and key != "version"]
        self.assertEqual(missing, [])

    def test_what_is_missing_is_in_the_reference(self) -> None:
        text = read("docs/configuration.md")
        for sentence in NOT_YET.values():
            self.assertIn(f"*{sentence}*", text)


class Commands(SynchronousTestCase):
    def test_flags_in_the_manual_exist(self) -> None:
        tried = set()
        for path in WITH_COMMANDS:
            for words in commands_in(path.read_text(encoding="utf-8")):
                known = flags_of(words[0])
                for word in words[1:]:
                    if word.startswith("-"):
                        flag = word.lstrip("-").partition("=")[0]
                        self.assertIn(flag, known, f"{path}: {words}")
                        tried.add((words[0], flag))
        self.assertGreater(len(tried), 8)
        self.assertLessEqual(
            {*TOOLS, "dendrite", "dendrite-generate-nginx", "dendrite-move-database", "dendrite-move-queue"},
            {tool for tool, _ in tried},
        )

    def test_flags_in_the_table_of_tools_exist(self) -> None:
        rows = re.findall(r"^\| `([a-z-]+)` \| (.*) \|$", read("README.md"), re.MULTILINE)
        self.assertEqual({tool for tool, _ in rows}, {*TOOLS, "dendrite"})
        for tool, text in rows:
            for flag in re.findall(r"`-([a-z-]+)`", text):
                self.assertIn(flag, flags_of(tool))

    def test_twistd_has_the_flags_of_the_server(self) -> None:
        options = Options()
        known = {name.rstrip("=") for name in options.longOpt}
        self.assertEqual(flags_of("dendrite") - {"api", "api-bind-address"} - known, set())

    def test_every_tool_is_a_program(self) -> None:
        servers = {"dendrite", "dendrite-monolith-server", "dendrite-polylith-multi"}
        servers |= {"dendrite-generate-nginx", "dendrite-move-database", "dendrite-move-queue"}
        components = {name for name, target in scripts().items() if "commands.polylith:" in target} - servers
        self.assertEqual(set(scripts()), {*TOOLS, *servers, *components})
        words = [re.sub(r"(api|appservice)-server", r"\1", name.removeprefix("dendrite-")) for name in components]
        found = {section_named(word) for word in words}
        self.assertEqual(found, {*SECTIONS})
        for target in scripts().values():
            module, _, name = target.partition(":")
            self.assertTrue(callable(getattr(importlib.import_module(module), name)))

    def test_targets_and_variables_of_make_exist(self) -> None:
        makefile = read("Makefile")
        targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
        variables = set(re.findall(r"^([A-Z]+) \?=", makefile, re.MULTILINE))
        tried = 0
        for path in [*MANUAL, ROOT / "Makefile", ROOT / ".ci" / "run"]:
            for line in re.findall(
                r"(?:^ +|^# +|`|; )make ([a-z]+(?: [A-Z]+=\S+)*)", path.read_text(encoding="utf-8"), re.MULTILINE
            ):
                target, *rest = line.split()
                self.assertIn(target, targets, path)
                for word in rest:
                    self.assertIn(word.partition("=")[0], variables, path)
                tried += 1
        self.assertGreater(tried, 5)


class Links(SynchronousTestCase):
    def test_files_that_are_named_exist(self) -> None:
        for path in MANUAL:
            text = path.read_text(encoding="utf-8")
            for target in re.findall(r"\]\(([^)#:]+)\)", text):
                self.assertTrue((path.parent / target).exists(), f"{path}: {target}")
            for name in re.findall(r"`((?:docs|conf|contrib|\.ci)/[\w./-]+)`", text):
                self.assertTrue((ROOT / name).exists(), f"{path}: {name}")

    def test_keys_in_the_nginx_sample_load(self) -> None:
        text = read("contrib/nginx/dendrite.conf")
        block = "\n".join(re.findall(r"^#   ( *[a-z_]+:.*)$", text, re.MULTILINE))
        text = "version: 2\n" + block.replace(
            "global:", "global:\n  private_key: k\n  database: {connection_string: 'postgres://'}"
        )
        config = loads(text + "\nmedia_api: {base_path: m}\n")
        self.assertEqual(config.problems, ())
        self.assertEqual(config.global_.well_known_server_name, "matrix.example.com:443")


class Dependencies(SynchronousTestCase):
    def pins(self, name: str) -> dict[str, str]:
        lines = [line for line in read(name).splitlines() if line and not line.startswith(("#", "-r"))]
        found = dict(line.split("==") for line in lines)
        self.assertEqual(list(found), sorted(found, key=str.lower), f"{name} is in order")
        return found

    def test_each_is_explained_once(self) -> None:
        rows = re.findall(r"^\| ([A-Za-z][\w.-]*) \| (.+) \|$", read("docs/dependencies.md"), re.MULTILINE)
        explained = [name for name, _ in rows if name != "package"]
        pinned = [
            name
            for file in ("requirements", "requirements-test", "requirements-dev")
            for name in self.pins(f"{file}.txt")
        ]
        self.assertEqual(sorted(explained), sorted(pinned))

    def test_pins_satisfy_the_lower_bounds(self) -> None:
        setup = ConfigParser()
        setup.read(ROOT / "setup.cfg")
        pins = self.pins("requirements.txt")
        for line in setup["options"]["install_requires"].strip().splitlines():
            name, _, bound = line.partition(">=")
            pinned = [int(part) for part in re.findall(r"\d+", pins[name])]
            self.assertGreaterEqual(pinned, [int(part) for part in bound.split(".")], name)


class Summary(SynchronousTestCase):
    def test_lines_of_trial(self) -> None:
        source: dict[str, object] = {"__name__": "summary"}
        exec(read(".ci/summary"), source)
        summarise = source["summarise"]
        assert callable(summarise)
        for text, expected in (
            ("Ran 5 tests in 1.0s\n\nPASSED (successes=5)\n", (5, 0, 0)),
            ("PASSED (skips=2, expectedFailures=1, successes=5)\n", (5, 0, 3)),
            ("FAILED (failures=1, errors=2, successes=3)\n", (3, 3, 0)),
            ("FAILED (unexpectedSuccesses=1, successes=3)\n", (3, 1, 0)),
            ("PASSED (successes=1)\nFAILED (errors=1)\n", (0, 1, 0)),
            ("Ran 0 tests in 0.000s\n\nPASSED\n", (0, 1, 0)),
            ("make: *** No rule\n", (0, 1, 0)),
        ):
            self.assertEqual(summarise(text), expected, text)
