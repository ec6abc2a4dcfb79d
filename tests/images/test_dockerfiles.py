"""The Dockerfiles by what they say, and their install steps by running them: no Docker engine runs here.

The first step, which installs the lock file, takes minutes and 4 GB; it is scripts/setup's, which made the environment
that these tests run in. What was run of the images by hand, and where, is told in README.md.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "images"
PACKAGES = ("cluster", "experts", "ops", "replicas")
each = pytest.mark.parametrize("kind", ["cpu", "gpu"])


@dataclass
class Instruction:
    """One line of a Dockerfile, whatever it was broken into. `flags`: --name=value, in the order given."""

    keyword: str
    text: str  # after the flags
    flags: list[tuple[str, str]] = field(default_factory=list)

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)

    def flag(self, name: str) -> str:
        return next((value for key, value in self.flags if key == name), "")


@dataclass
class Stage:
    base: str
    name: str
    steps: list[Instruction] = field(default_factory=list)

    def each(self, keyword: str) -> list[Instruction]:
        return [step for step in self.steps if step.keyword == keyword]

    @property
    def environment(self) -> dict[str, str]:
        return dict(word.split("=", 1) for step in self.each("ENV") for word in step.words)


def instructions(text: str) -> list[Instruction]:
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    found = []
    for whole in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        keyword, _, rest = whole.strip().partition(" ")
        flags = []
        while match := re.match(r"\s*--([a-z-]+)=(\S+)\s*", rest):
            flags.append((match[1], match[2]))
            rest = rest[match.end() :]
        found.append(Instruction(keyword.upper(), rest.strip(), flags))
    return found


def stages(kind: str, **arguments: str) -> list[Stage]:
    """With `arguments` for the ARGs before the first FROM; the last one is what is run."""
    known: dict[str, str] = {}
    found: list[Stage] = []
    for step in instructions((IMAGES / f"Dockerfile.{kind}").read_text()):
        if step.keyword == "FROM":
            base, *name = re.split(r" as ", step.text, flags=re.IGNORECASE)
            base = re.sub(r"\$\{(\w+)\}", lambda match: known[match[1]], base)
            found.append(Stage(base, name[0] if name else ""))
        elif found:
            found[-1].steps.append(step)
        else:
            assert step.keyword == "ARG", "nothing but arguments comes before the first stage"
            name, _, default = step.text.partition("=")
            known[name] = arguments.get(name, default)
    return found


def bases(found: list[Stage]) -> list[str]:
    return [stage.base for stage in found if stage.base not in {other.name for other in found}]


class Ignored:
    """.dockerignore: of the patterns that match a path or a folder above it, the last one counts."""

    def __init__(self) -> None:
        lines = (ROOT / ".dockerignore").read_text().splitlines()
        self._rules = [
            (not line.startswith("!"), _pattern(line.lstrip("!"))) for line in lines if line and line[0] != "#"
        ]

    def __contains__(self, path: str) -> bool:
        parts = path.split("/")
        above = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
        ignored = False
        for ignores, pattern in self._rules:
            if any(pattern.fullmatch(each) for each in above):
                ignored = ignores
        return ignored


def _pattern(line: str) -> re.Pattern[str]:
    escaped = re.escape(line).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
    return re.compile(escaped)


def tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return done.stdout.splitlines()


# -- what they say ----------------------------------------------------------------------------------------------------


@each
def test_it_runs_as_a_user_without_rights_and_without_a_name(kind) -> None:
    last = stages(kind)[-1]
    (user,) = last.each("USER")
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user.text)
    assert not any(step.keyword in ("RUN", "COPY", "ADD") for step in last.steps[last.steps.index(user) :])


@each
def test_its_base_is_pinned_and_may_be_named_by_digest(kind) -> None:
    python = {"cpu": "3.11", "gpu": "3.12"}[kind]  # what was run with the lock file of that name
    assert {re.sub(r"\.\d+-", ".N-", base) for base in bases(stages(kind))} == {f"python:{python}.N-slim-bookworm"}
    by_digest = f"mirror.example/python@sha256:{'0' * 64}"
    assert set(bases(stages(kind, PYTHON_IMAGE=by_digest))) == {by_digest}


@each
def test_it_starts_in_an_empty_directory_that_it_may_not_write(kind) -> None:
    last = stages(kind)[-1]
    directory = last.each("WORKDIR")[-1].text
    assert directory.startswith("/") and not directory.startswith((last.environment["HOME"], "/tmp"))
    others = [step for step in last.steps if step.keyword != "WORKDIR"]
    assert not any(directory in step.text for step in others)
    # WORKDIR makes it for root; no file comes to where a step would put it without naming it.
    assert not any(
        step.keyword in ("RUN", "COPY", "ADD") for step in last.steps[last.steps.index(last.each("WORKDIR")[-1]) :]
    )


@each
def test_what_it_copies_is_there_and_is_let_in(kind) -> None:
    ignored, found = Ignored(), stages(kind)
    for stage in found:
        assert not stage.each("ADD")
        for step in stage.each("COPY"):
            *sources, _ = step.words
            if origin := step.flag("from"):
                assert origin in {other.name for other in found}
                continue
            for source in sources:
                assert (ROOT / source).exists() and source not in ignored, source
        for step in stage.each("RUN"):
            mounts = [
                dict(part.split("=", 1) for part in value.split(",")) for key, value in step.flags if key == "mount"
            ]
            for mount in mounts:
                if mount["type"] == "bind" and "from" not in mount:
                    assert (ROOT / mount["source"]).exists() and mount["source"] not in ignored


@each
def test_the_packages_come_from_the_lock_file_by_one_script(kind) -> None:
    found = stages(kind)
    runs = [step.text for stage in found for step in stage.each("RUN")]
    ours = [text for text in runs if "/install " in text]
    assert [re.split(r"\S*/install ", text)[1].split()[0] for text in ours] == ["environment", "wheel", "moray"]
    assert f"environment {kind} /opt/moray" in ours[0]
    assert not any("pip" in text for text in runs)
    copied = [source for step in found[0].each("COPY") for source in step.words[:-1]]
    assert copied == ["images/install", f"requirements/{kind}.lock"]  # Moray's sources are no reason to install anew
    for text in runs:
        if "apt-get" in text:
            assert "--no-install-recommends" in text and "rm -rf /var/lib/apt/lists/*" in text


@each
def test_no_secret_stays_in_it(kind) -> None:
    for stage in stages(kind):
        named = [step.text.split("=")[0] for step in stage.each("ARG")] + list(stage.environment)
        assert not [name for name in named if re.search(r"TOKEN|PASSW|SECRET|CREDENTIAL|KEY|INDEX", name)]
        for step in stage.each("RUN"):
            if "environment" in step.text:
                assert any("type=secret,id=pip.conf" in value for _, value in step.flags)


@each
def test_it_has_what_kuberay_and_the_engines_need(kind) -> None:
    """`bash -c` or `bash -lc` with `ray start`; probes by wget where it cannot ask by HTTP. vLLM's CPU engine is linked
    to libnuma, Triton calls a C compiler."""
    last = stages(kind)[-1]
    system = " ".join(step.text for step in last.each("RUN"))
    assert {"wget", "tini", {"cpu": "libnuma1", "gpu": "g++"}[kind]} <= set(system.split())
    assert last.environment["PATH"].startswith("/opt/moray/bin:")
    profile = re.search(r"echo '(.*?)' >/etc/profile\.d/\w+\.sh", system)
    login = ["bash", "-c", f"PATH=/usr/bin; {profile[1]}; echo $PATH"]
    assert subprocess.check_output(login, text=True) == "/opt/moray/bin:/usr/bin\n"
    assert (last.each("ENTRYPOINT")[-1].text, last.each("CMD")[-1].text) == ('["tini", "--", "moray"]', '["--help"]')


@each
def test_its_root_may_be_read_only_and_any_uid_has_a_name(kind) -> None:
    environment = stages(kind)[-1].environment
    assert environment["HOME"] == "/home/moray" and environment["USER"] == "moray"
    assert environment["PYTHONDONTWRITEBYTECODE"] == "1"
    # All other caches follow HOME or lie in /tmp.
    assert not [name for name in environment if re.search(r"CACHE|XDG|TMP", name)]
    assert ("NVIDIA_DRIVER_CAPABILITIES" in environment) == (kind == "gpu")
    assert "NVIDIA_VISIBLE_DEVICES" not in environment  # else a pod without GPUs would see all


@each
def test_its_labels_say_which_version_it_is(kind) -> None:
    last = stages(kind)[-1]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"VERSION={version}" in [step.text for step in last.each("ARG")]
    labels = dict(word.split("=", 1) for step in last.each("LABEL") for word in step.words)
    prefix = "org.opencontainers.image."
    assert {label.removeprefix(prefix) for label in labels} >= {"title", "version", "revision", "licenses", "base.name"}
    assert labels[f"{prefix}version"] == "${VERSION}" and labels[f"{prefix}base.name"] == "${PYTHON_IMAGE}"
    assert "PYTHON_IMAGE" in [step.text for step in last.each("ARG")]  # a stage knows only what it asks for


def test_the_context_holds_what_is_packaged_and_nothing_else() -> None:
    ignored = Ignored()
    let_in = [path for path in tracked() if path not in ignored]
    assert {path.split("/")[0] for path in let_in} == {
        "LICENSE", "README.md", "pyproject.toml", "images", "requirements", *PACKAGES
    }  # fmt: skip
    assert all(path in let_in for path in tracked() if path.endswith(".py") and path.split("/")[0] in PACKAGES)
    for path in (".git/config", ".venv/bin/python", "keys.yaml", ".env", "cluster/__pycache__/a.pyc", "build/lib/x.py"):
        assert path in ignored


# -- the install steps ------------------------------------------------------------------------------------------------


def install(*arguments: object, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["/bin/bash", IMAGES / "install", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=200)


def test_the_script_installs_the_torch_of_the_lock_files() -> None:
    torch = re.search(r"^torch=(\S+)$", (IMAGES / "install").read_text(), re.MULTILINE)
    assert f"torch=={torch[1]}" in (ROOT / "requirements" / "gpu.lock").read_text().splitlines()


def test_no_file_names_a_package_index_but_pytorchs() -> None:
    for file in IMAGES.iterdir():
        found = [word for word in file.read_text().split() if "://" in word]
        assert not [word for word in found if "https://download.pytorch.org/whl/cpu" not in word], file


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "environment cpu|gpu DIR, wheel DIR OUT, or moray DIR WHEEL"),
        (("environment", "tpu", "x"), "no such lock file: requirements/tpu.lock"),
        (("remove", "x", "y"), "unknown step: remove"),
    ],
)
def test_what_it_does_not_know_is_one_sentence(arguments, said) -> None:
    done = install(*arguments)
    assert (done.returncode, done.stderr.strip()) == (1, f"images/install: {said}")


def test_a_python_that_the_lock_file_is_not_for_is_refused(tmp_path) -> None:
    (tmp_path / "python3").write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.13.1"\n[ "$1" != -c ]\n')
    (tmp_path / "python3").chmod(0o755)
    done = install("environment", "gpu", tmp_path / "venv", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.stderr.strip() == "images/install: requirements/gpu.lock is for Python 3.12, this is Python 3.13.1"


def test_the_directory_may_be_named_from_here(tmp_path) -> None:
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    for name in ("python", "moray", "ray"):
        (tmp_path / "venv" / "bin" / name).write_text("#!/bin/sh\n")
        (tmp_path / "venv" / "bin" / name).chmod(0o755)
    done = install("moray", "venv", "wheel", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> Path:
    """What a builder would be sent."""
    ignored, directory = Ignored(), tmp_path_factory.mktemp("context")
    for path in tracked():
        if path not in ignored and (ROOT / path).is_file():
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, directory / path)
    return directory


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """A virtual environment with all that this one has, but Moray: as the image's first stage makes it."""
    directory = tmp_path_factory.mktemp("image")
    packages = directory / "packages"
    packages.mkdir()
    site = Path(sys.prefix) / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    for entry in site.iterdir():
        if not re.match(r"moray-|__editable__|.*\.pth$", entry.name):
            (packages / entry.name).symlink_to(entry)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory / "venv"], check=True, timeout=100)
    own = next((directory / "venv").glob("lib/python3*/site-packages"))
    (own / "as-in-the-image.pth").write_text(f"{packages}\n")
    ray = directory / "venv" / "bin" / "ray"
    ray.write_text(f"#!{directory}/venv/bin/python\nfrom ray.scripts.scripts import main\nmain()\n")
    ray.chmod(0o755)
    return directory / "venv"


def test_moray_is_built_and_runs_from_an_empty_directory(context, environment, tmp_path) -> None:
    done = install("wheel", environment, tmp_path / "wheel", cwd=context)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "wheel").iterdir()
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names if not name.startswith("moray-")} == set(PACKAGES)
    # What is read as the program runs, beside its code.
    read = ("cluster/profiles/.*", "experts/tiers/.*", "experts/tiny_r1/versions/.*", "ops/runbooks/.*")
    needed = "|".join((*read, r"ops/console/[^/]*\.(js|css|html)"))
    data = {path for path in tracked() if re.fullmatch(needed, path)}
    assert len(data) > 50 and data <= names
    assert {path for path in tracked() if path.endswith(".py") and path.split("/")[0] in PACKAGES} <= names

    done = install("moray", environment, wheel)
    assert done.returncode == 0 and "ray, version" in done.stdout, done.stderr
    empty = tmp_path / "empty"
    empty.mkdir()
    asked = "import cluster, ops, replicas, experts; print(*{m.__file__ for m in (cluster, ops, replicas, experts)})"
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    run = {"cwd": empty, "env": clean, "text": True, "timeout": 100}
    found = subprocess.check_output([environment / "bin" / "python", "-c", asked], **run)
    assert all(path.startswith(str(environment)) for path in found.split())
    assert "profile" in subprocess.check_output([environment / "bin" / "moray", "config", "--profile", "32b"], **run)
    plugins = "from importlib.metadata import entry_points as e; print(*e(group='vllm.general_plugins'))"
    assert "experts.vllm_plugin:register" in subprocess.check_output(
        [environment / "bin" / "python", "-c", plugins], **run
    )
