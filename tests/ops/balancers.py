"""HAProxy and nginx as Debian has them, with the files of ops/load_balancers on free ports."""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

FILES = Path(__file__).parents[2] / "ops" / "load_balancers"
# Debian has them where only root's PATH leads.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ADDRESSES = ("10.0.0.11:8000", "10.0.0.12:8000")


@dataclass(frozen=True)
class Kind:
    """One of the two programs: how it is run, and what of its file says where this machine's things are."""

    name: str
    package: str
    file: str
    here: tuple[tuple[str, str], ...]  # what stands in the file -> what a test has; {port} and {dir} are filled in
    check: Callable[[str, Path], list[str]]
    run: Callable[[str, Path], list[str]]
    reload: signal.Signals
    out: tuple[str, str]  # what takes the second server out: pattern, replacement

    @property
    def program(self) -> str | None:
        return shutil.which(self.name, path=PATH)


HAPROXY = Kind(
    name="haproxy",
    package="haproxy",
    file="haproxy.cfg",
    here=(
        ("bind :80", "bind 127.0.0.1:{port}"),
        ("/run/haproxy/admin.sock", "{dir}/admin.sock"),
        ("maxconn 8000", "maxconn 1000"),  # a developer's ulimit -n
    ),
    check=lambda program, file: [program, "-c", "-f", str(file)],
    # The master replaces its worker at SIGUSR2, with -sf and the worker's pid, as Debian's service does.
    run=lambda program, file: [program, "-W", "-f", str(file)],
    reload=signal.SIGUSR2,
    out=(r"(server gateway-2 .*)", r"\1 disabled"),
)
_NGINX_KEEPS = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
NGINX = Kind(
    name="nginx",
    package="nginx-light",
    file="nginx.conf",
    here=(
        ("listen 80;", "listen 127.0.0.1:{port};"),
        ("pid /run/nginx.pid;", "pid {dir}/nginx.pid;"),
        ("/var/log/nginx/error.log", "{dir}/error.log"),
        ("/var/log/nginx/access.log", "{dir}/access.log"),
        ("worker_processes auto;", "worker_processes 2;"),
        # What a packaged nginx keeps where only root may write.
        ("http {", "http {{" + "".join(f" {of}_temp_path {{dir}}/{of};" for of in _NGINX_KEEPS)),
    ),
    check=lambda program, file: [program, "-t", "-e", "stderr", "-c", str(file)],
    run=lambda program, file: [program, "-e", "stderr", "-c", str(file), "-g", "daemon off;"],
    reload=signal.SIGHUP,
    out=(r"(server 127\.0\.0\.1:\d+) (max_fails=1 fail_timeout=5s;\n\s*\})", r"\1 down \2"),
)


@dataclass
class Balancer:
    """A running one."""

    kind: Kind
    port: int
    file: Path
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def is_up(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def workers(self) -> set[int]:
        return {child.pid for child in psutil.Process(self.process.pid).children()}

    def take_out_the_second(self) -> None:
        """Writes it into the file; `reload()` is to follow."""
        text, found = re.subn(*self.kind.out, self.file.read_text())
        assert found == 1
        self.file.write_text(text)

    async def reload(self) -> None:
        """Returns when a new worker is there beside the old."""
        before = self.workers()
        self.process.send_signal(self.kind.reload)
        await until(lambda: self.workers() - before)

    def command(self, line: str) -> str:
        """HAProxy's answer on its socket."""
        with socket.socket(socket.AF_UNIX) as admin:
            admin.connect(str(self.file.parent / "admin.sock"))
            admin.sendall(line.encode() + b"\n")
            return b"".join(iter(lambda: admin.recv(1 << 16), b"")).decode()

    def state(self, server: str) -> str:
        """UP, DOWN, MAINT, DRAIN …, as HAProxy's statistics say it."""
        head, *rows = (row.split(",") for row in self.command("show stat").lstrip("# ").splitlines() if row)
        return next(row[head.index("status")] for row in rows if row[1] == server)


async def until(condition: Callable[[], object], limit_s: float = 20.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        await asyncio.sleep(0.02)


def placed(kind: Kind, directory: Path, gateways: tuple[str, str], port: int, edit: Callable[[str], str]) -> Path:
    """The committed file with the places of this test; every one of them must stand in it once."""
    text = (FILES / kind.file).read_text()
    for there, here in (*kind.here, *zip(ADDRESSES, gateways, strict=True)):
        assert len(re.findall(rf"{re.escape(there)}(?![0-9])", _code(text))) == 1, there
        text = "".join(
            line if line.lstrip().startswith("#") else line.replace(there, here.format(port=port, dir=directory))
            for line in text.splitlines(keepends=True)
        )
    file = directory / kind.file
    file.write_text(edit(text))
    return file


def _code(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))


@asynccontextmanager
async def balancing(kind: Kind, *gateway_urls: str, edit: Callable[[str], str] = str) -> AsyncIterator[Balancer]:
    with _process(kind, gateway_urls, edit) as balancer:
        await until(balancer.is_up)
        yield balancer


@contextmanager
def _process(kind: Kind, gateway_urls: tuple[str, ...], edit: Callable[[str], str]) -> Iterator[Balancer]:
    first, second = (url.removeprefix("http://") for url in gateway_urls)
    # A short path of everybody's: HAProxy's socket has room for 108 characters, nginx' workers are www-data's.
    with tempfile.TemporaryDirectory(prefix="moray-lb-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        port = free_port()
        file = placed(kind, directory, (first, second), port, edit)
        log = directory / "log"
        with log.open("w") as out:
            # Ends with us, however we end, and has its workers end.
            command = ["setpriv", "--pdeathsig", "TERM", *kind.run(kind.program or "", file)]
            process = subprocess.Popen(command, stdout=out, stderr=out)
        try:
            yield Balancer(kind, port, file, process, log)
        finally:
            children = psutil.Process(process.pid).children() if process.poll() is None else []
            process.terminate()
            process.wait(timeout=10)
            for child in psutil.wait_procs(children, timeout=2)[1]:
                child.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
