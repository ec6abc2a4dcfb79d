"""The store of versions, as a rollout needs it. Reads files: to be called in threads, whole checkpoints are hashed."""

from __future__ import annotations

from pathlib import Path

from experts.versions import BadVersion, Manifest, find, verify, versions
from ops.rollout.observed import Check
from replicas.messages import Probe, Swap


class Shelf:
    def __init__(self, store: Path | None) -> None:
        """`store` None: the served model is no version, and there is nothing to roll out."""
        self._store = store

    def directories(self) -> dict[str, str]:
        """Checkpoints by version, of those that can be used; empty without a store. BadVersion: it cannot be read."""
        if self._store is None:
            return {}
        return {v.name: str(v.directory) for v in versions(self._store) if v.manifest is not None}

    def find(self, version: str) -> Manifest:
        """Raises BadVersion; the message names the versions that there are."""
        if self._store is None:
            raise BadVersion(
                "the served model has no versions: put its checkpoint into a store (`moray model add`), and serve it "
                "from there (settings model.store and model.version)"
            )
        manifest = find(self._store, version).manifest
        assert manifest is not None, "find() raises for a version without one"
        return manifest

    def check(self, version: str, stable: str) -> Check:
        """Reads all of the version's files, and whether it can take the place of `stable`."""
        try:
            new, old = self.find(version), self.find(stable)
        except BadVersion as why:
            return Check(version=version, problems=(str(why),))
        assert self._store is not None
        problems = [damage.text for damage in verify(self._store / version)]
        if new.text != old.text:
            problems.append(
                f"{version}'s tokenizer, chat template, special tokens or generation defaults are not {stable}'s, and "
                "gateways hold one of each: serve it as an application of its own"
            )
        return Check(
            version=version,
            problems=tuple(problems),
            same_architecture=new.architecture == old.architecture,
            golden=len(new.golden),
        )

    def swap(self, command: str, version: str, directory: str, finish_s: float, checksum: str) -> Swap:
        """The command to serve the version in place. Raises BadVersion."""
        manifest = self.find(version)
        return Swap(
            id=command,
            version=version,
            directory=directory,
            sha256=manifest.sha256,
            finish_s=finish_s,
            checksum=checksum,
            probes=tuple(
                Probe(
                    prompt=golden.prompt_token_ids,
                    answer=golden.answer_token_ids,
                    max_tokens=golden.max_tokens,
                    logprobs=golden.logprobs or (),
                )
                for golden in manifest.golden
            ),
        )
