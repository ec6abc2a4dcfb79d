"""The command `moray model`: arguments and output. What it does lies beside it and in `experts.versions`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ops.errors import UserError
from ops.options import AsJson

if TYPE_CHECKING:
    from experts.versions import Report, Version

app = typer.Typer(no_args_is_help=True, help="Versions of a model: add, list, verify.")

Store = Annotated[
    Path | None,
    typer.Option("--store", envvar="MORAY_MODEL__STORE", metavar="DIR", help="Store. Default: the embedded model's."),
]


@app.callback()
def model() -> None:
    """Versions of a model. Each is a directory of a store, with its manifest moray.json; settings name the store by
    model.store and the version that a new cluster serves by model.version."""


@app.command(
    epilog="Examples: `moray model add ~/models/Qwen3-30B-A3B --store /models/qwen3 --version v1` · "
    "`moray model add ~/tuned --store /models/qwen3 --version v2 --parent v1 --notes 'tuned on tickets' "
    "--golden golden.jsonl` · `moray model add /models/qwen3/v3 --store /models/qwen3 --version v3` (it lies there "
    "already). A line of golden.jsonl: "
    '`{"messages": [{"role": "user", "content": "What is 27 + 71?"}], "answer": "98"}`'
)
def add(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Hugging Face checkpoint.")],
    store: Annotated[
        Path,
        typer.Option("--store", envvar="MORAY_MODEL__STORE", metavar="DIR", help="Store; made if it is not there."),
    ],
    version: Annotated[str, typer.Option("--version", metavar="NAME", help="The new version's name, e.g. v2.")],
    parent: Annotated[
        str | None, typer.Option(metavar="NAME", help="Version of the store that it was made of.")
    ] = None,
    notes: Annotated[str, typer.Option(help="What is new in it.")] = "",
    golden: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Prompts that it must answer exactly, JSONL: prompt or messages, answer."),
    ] = None,
    accuracy: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON object with what an evaluation found; kept as it is.")
    ] = None,
    link: Annotated[
        bool,
        typer.Option("--link", help="Hard links instead of copies: no room taken, but never write into DIR's files."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a version of a checkpoint: check it, copy it, hash every file, write its manifest last.

    Until the last step nothing of it bears the version's name; after an interruption, run it again. Copies share their
    blocks with the original where the file system can (XFS, Btrfs): they take no room there, and no time.
    """
    from experts.versions import BadVersion, compatible, find
    from ops.models import golden as golden_prompts
    from ops.models.add import add as add_version

    directory, store = directory.expanduser(), store.expanduser()
    try:
        judged = _object(accuracy) if accuracy is not None else None
        prompts = golden_prompts.encoded(golden_prompts.read(golden), directory) if golden is not None else ()
        with _progress() as report:
            made = add_version(
                directory,
                store,
                version,
                parent=parent,
                notes=notes,
                golden=prompts,
                accuracy=judged,
                link=link,
                report=report,
            )
        older = find(store, parent).manifest if parent is not None else None
    except BadVersion as error:
        raise UserError(str(error)) from None
    reasons = compatible(older, made) if older is not None else []
    if as_json:
        _say(
            json.dumps(
                {"name": version, "directory": str(store / version), "bytes": made.bytes, "files": len(made.files)}
                | {"golden": len(made.golden), "parent": parent, "not_in_place": reasons}
            )
        )
        return
    _say(
        f"{store / version}: {len(made.files)} files, {made.bytes / 1e6:,.1f} MB, {len(made.golden)} golden prompts. "
        f"A new cluster: `moray up --set model.store={store} --set model.version={version}`; a running one: "
        f"`moray rollout start {version}`"
    )
    for reason in reasons:
        _say(f"note: {reason}")


@app.command("list", epilog="Examples: `moray model list` · `moray model list --store /models/qwen3 --json`")
def list_(store: Store = None, as_json: AsJson = False) -> None:
    """Show a store's versions, oldest first. "in place of": running replicas can go from those to it by a swap."""
    from experts.versions import BadVersion, compatible, versions

    directory = _store(store)
    try:
        found = versions(directory)
    except BadVersion as error:
        raise UserError(str(error)) from None
    if as_json:
        _say(json.dumps({"store": str(directory), "versions": [_told(version) for version in found]}))
        return
    if not found:
        _say(f"{directory} holds no versions yet: `moray model add DIR --store {directory} --version v1`")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    whole = [version.manifest for version in found if version.manifest is not None]
    table = Table("version", title=str(directory))
    for column in ("made", "of", "size", "golden", "in place of"):
        table.add_column(column, no_wrap=column != "in place of")
    table.add_column("notes", overflow="fold")
    for version in found:
        if (m := version.manifest) is None:
            table.add_row(Text(version.name, style="red"), *[""] * 5, Text(version.flaw, style="red"))
            continue
        fits = [other.name for other in whole if other is not m and not compatible(other, m)]
        made = m.created.replace("T", " ")[:16]
        row = (m.name, made, m.parent or "-", f"{m.bytes / 1e6:,.1f} MB", str(len(m.golden)), ", ".join(fits) or "none")
        table.add_row(*map(Text, (*row, m.notes)))
    Console().print(table)


@app.command(
    epilog="Examples: `moray model verify` · `moray model verify v2 --store /models/qwen3` · "
    "`moray model verify v2 --store /models/qwen3 --json || echo damaged`. Exit codes: 0 whole, 1 damaged, 2 no such "
    "version or store."
)
def verify(
    version: Annotated[str | None, typer.Argument(metavar="[VERSION]", help="Default: all of the store.")] = None,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Compare every byte of a version with its manifest: corrupt, truncated, missing and extra files."""
    from experts.versions import BadVersion, check_name, versions
    from experts.versions import verify as damages_of

    directory = _store(store)
    try:
        if version is not None:
            check_name(version)
        found = [each for each in versions(directory) if version in (None, each.name)]
    except BadVersion as error:
        raise typer.BadParameter(str(error)) from None
    if not found:
        there = ", ".join(each.name for each in versions(directory)) or "no versions"
        raise typer.BadParameter(f"{directory} has no version {version or ''}; it has: {there}")
    damaged, told = False, []
    for each in found:
        begin = time.monotonic()
        with _progress() as report:
            damages = damages_of(each.directory, report)
        seconds, damaged = time.monotonic() - begin, damaged or bool(damages)
        told.append(_verified(each, damages, seconds))
        if as_json:
            continue
        if not damages and each.manifest is not None:
            size = each.manifest.bytes
            _say(f"{each.name}: whole, {len(each.manifest.files)} files, {size / 1e6:,.1f} MB in {seconds:.1f} s")
        for damage in damages:
            _say(f"{each.name}: {damage.flaw.value}: {damage}")
    if as_json:
        _say(json.dumps({"store": str(directory), "whole": not damaged, "versions": told}))
    if damaged:
        raise typer.Exit(1)


def _verified(version: Version, damages: Any, seconds: float) -> dict[str, Any]:
    return {
        "name": version.name,
        "whole": not damages,
        "bytes": version.manifest.bytes if version.manifest else None,
        "seconds": round(seconds, 3),
        "damages": [{"flaw": damage.flaw.value, "file": damage.file, "text": damage.text} for damage in damages],
    }


def _told(version: Version) -> dict[str, Any]:
    manifest = version.manifest
    if manifest is None:
        return {"name": version.name, "flaw": version.flaw}
    return {
        "name": manifest.name,
        "parent": manifest.parent,
        "notes": manifest.notes,
        "created": manifest.created,
        "files": len(manifest.files),
        "bytes": manifest.bytes,
        "architecture": manifest.architecture,
        "text": manifest.text,
        "golden": len(manifest.golden),
        "accuracy": manifest.accuracy,
    }


def _store(given: Path | None) -> Path:
    if given is not None:
        return given.expanduser()
    from experts.tiny_r1 import store_path

    return store_path()


def _object(file: Path) -> dict[str, Any]:
    from experts.versions import BadVersion

    try:
        read = json.loads(file.read_bytes())
    except OSError as error:
        raise BadVersion(f"{file} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise BadVersion(f"{file} is not JSON: {error}") from None
    if not isinstance(read, dict):
        raise BadVersion(f"{file} holds no JSON object")
    return read


@contextmanager
def _progress() -> Iterator[Report]:
    """A bar on standard error while it lasts."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("reading", total=None)
        yield lambda file, done, total: progress.update(task, description=file, completed=done, total=total)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
