"""``python -m dendrite_tw.config --write-samples``: write the files that come from the tree anew.

These are the samples in ``conf/``, the tables in ``docs/configuration.md``, below its marker, and the nginx sample for
a polylith.  Run it in the root of the repository after changing a key or a route.
"""

from __future__ import annotations

import sys
from pathlib import Path

from dendrite_tw.commands import generate_nginx
from dendrite_tw.config.samples import polylith_sample, reference, sample

MARKER = "<!-- The tables below are written by python -m dendrite_tw.config --write-samples. -->\n"


def outputs(root: Path) -> dict[Path, str]:
    """Each file that is written, with its text as it should be."""
    manual = root / "docs" / "configuration.md"
    introduction = manual.read_text(encoding="utf-8").partition(MARKER)[0]
    return {
        root / "conf" / "dendrite-sample.yaml": sample(),
        root / "conf" / "dendrite-sample.polylith.yaml": polylith_sample(),
        root / "contrib" / "nginx" / "polylith.conf": generate_nginx.sample(),
        manual: f"{introduction}{MARKER}\n{reference()}",
    }


def main(arguments: list[str]) -> int:
    if arguments != ["--write-samples"]:
        print("usage: python -m dendrite_tw.config --write-samples", file=sys.stderr)
        return 2
    for path, text in outputs(Path.cwd()).items():
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
