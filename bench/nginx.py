"""Debian's nginx with one site, in a folder of its own and without the rights of an administrator."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

from bench.processes import processor_seconds

START_PATIENCE = 10.0

SETTINGS = """\
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 2048; }}
http {{
    map $status $failed {{ ~^5 1; default 0; }}
    access_log {folder}/access.log combined if=$failed;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/site.conf;
}}
"""


def program() -> str:
    found = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None:
        raise RuntimeError("nginx is not there (Debian: apt-get install nginx)")
    return found


class Nginx:
    """`site` is the text of what belongs into ``sites-enabled``; `port` is one of its ports."""

    def __init__(self, folder: Path, site: str, port: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._settings = folder / "nginx.conf"
        self._settings.write_text(SETTINGS.format(folder=folder))
        (folder / "site.conf").write_text(site)
        self._log = folder / "error.log"
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    def check(self) -> tuple[int, str]:
        """Exit code and output of ``nginx -t``."""
        done = subprocess.run([*self._command(), "-t"], capture_output=True, text=True, timeout=30, check=False)
        return done.returncode, done.stderr

    def start(self) -> None:
        """Start it and wait until it listens."""
        command = self._command()
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + START_PATIENCE
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"nginx did not start: {self._log.read_text()[-2000:]}")
            time.sleep(0.05)

    def processor_seconds(self) -> float:
        """Processor time since it started."""
        return processor_seconds(self._process.pid) if self._process is not None else 0.0

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)
            self._process = None

    def _command(self) -> list[str]:
        return [program(), "-e", str(self._log), "-c", str(self._settings)]

    def _listens(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=1):
                return True
        except OSError:
            return False
