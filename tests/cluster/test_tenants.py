"""The key file: who a key belongs to, what is wrong with a file, and how a gateway notices a new one."""

import asyncio
import hashlib
import logging
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import tenants
from cluster.tenants import LOOK_EVERY_S, KeyFile, KeyFileError, KeyRing, hash_of, parse, read
from replicas.messages import Tenant

DOCUMENTED = "\n".join(line[4:] for line in tenants.__doc__.splitlines() if line.startswith("    "))


def file_of(**keys: str) -> str:
    return "tenants:\n" + "".join(
        f"  - name: {name}\n    keys: [{hash_of(key)}]\n" for name, key in keys.items()
    )  # fmt: skip


def problems(text: str) -> tuple[str, ...]:
    with pytest.raises(KeyFileError) as caught:
        parse(text, "keys.yaml")
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


def test_the_documented_file_is_one():
    holder = parse(DOCUMENTED, "doc").holder("foo")  # whose hash it shows
    assert holder is not None and holder.priority_ceiling == 0
    assert holder.tenant == Tenant(
        name="acme", weight=2, requests_per_min=600, tokens_per_min=200_000, concurrency=32
    )  # fmt: skip


def test_what_is_left_out_is_no_limit():
    holder = parse(file_of(a="one"), "f").holder("one")
    assert holder is not None and holder.tenant == Tenant(name="a")


def test_a_key_is_known_by_plain_sha256():
    assert hash_of("moray-x") == "sha256:" + hashlib.sha256(b"moray-x").hexdigest()


def test_hashes_may_be_upper_case():
    assert parse(f"tenants: [{{name: a, keys: ['{hash_of('one').upper()}']}}]".replace("SHA256", "sha256"), "f").holder(
        "one"
    )


@given(st.text(max_size=80))
def test_no_other_key_opens(key):
    assert (parse(file_of(a="one"), "f").holder(key) is not None) == (key == "one")
    assert KeyRing({}).holder(key) is None


def test_a_tenant_without_keys_is_shut_out_and_an_empty_list_is_fine():
    parse("tenants:\n  - name: a\n    keys: []\n", "f")
    assert parse("tenants: []", "f").holder("") is None


def test_all_mistakes_are_told_at_once_with_their_lines():
    one, two = hash_of("one"), hash_of("two")
    text = f"""tenants:
  - name: a
    keys:
      - {one}
      - moray-secret
    request_per_min: 5
    weight: 0
    weight: 0
  - name: a
    keys: [{two}, {one}]
    key: moray-secret
    concurrency: many
  - keys: []
    priority: 1.5
tenant: x
"""
    said = problems(text)
    assert said == (
        "keys.yaml:5: keys: write sha256: and 64 hexadecimal digits, the hash that `moray key new` prints, not the key",
        "keys.yaml:6: unknown name request_per_min: did you mean requests_per_min?",
        "keys.yaml:8: weight was set before, in line 7",
        "keys.yaml:8: weight: input should be greater than 0",
        "keys.yaml:9: name: a is the name of the tenant in line 2 too",
        "keys.yaml:10: keys: the same key stands in line 4 too",
        "keys.yaml:11: unknown name key: did you mean keys?",
        "keys.yaml:12: concurrency: input should be a valid integer, unable to parse string as an integer",
        "keys.yaml:13: name: field required",
        "keys.yaml:14: priority: input should be a valid integer, got a number with a fractional part",
        "keys.yaml:15: unknown name tenant: did you mean tenants?",
    )
    assert "moray-secret" not in str(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "keys.yaml:1: the file: input should be a valid dictionary"),
        ("- a", "keys.yaml:1: the file: input should be a valid dictionary"),
        ("tenants:", "keys.yaml:1: tenants: input should be a valid list"),
        ("a: [\n", "keys.yaml:2 is not valid YAML"),
        ("tenants: [5, {name: x}]", "keys.yaml:1: 0: input should be a valid dictionary"),
        ("tenants: [{name: 'a b', keys: []}]", "name: string should match"),
        (f"tenants: [{{name: a, keys: {hash_of('x')}}}]", "keys.yaml:1: keys: input should be a valid list"),
        ("tenants: [{name: a, keys: [[]]}]", "keys.yaml:1: keys: input should be a valid string"),
        ("? [a]\n: 1\n", "keys.yaml:1 is not valid YAML"),
        ("\x00", "keys.yaml is not valid YAML"),
        ("x: &a {b: *a}", "keys.yaml:1: tenants: field required"),
    ],
)
def test_files_that_are_none(text, said):
    assert said in problems(text)[0]


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(KeyFileError, match=r"No such file or directory; `moray key new --tenant NAME --file .*` makes"):
        read(tmp_path / "no.yaml")
    (tmp_path / "b").write_bytes(b"\xff\xfe")
    with pytest.raises(KeyFileError, match="is not UTF-8 text"):
        read(tmp_path / "b")


@given(st.text(max_size=60) | st.text(alphabet="tenants:[]{}-a \n&*?", max_size=60))
def test_any_text_is_a_key_file_or_told_to_be_none(text):
    try:
        parse(text, "f")
    except KeyFileError as error:
        assert error.problems


class Watched:
    """A KeyFile and a clock that is set by hand."""

    def __init__(self, path):
        self.now = 100.0
        self.file = KeyFile(path, lambda: self.now)

    def knows(self, key: str, after_s: float = LOOK_EVERY_S) -> bool:
        self.now += after_s
        return asyncio.run(self.file.ring()).holder(key) is not None


def test_a_changed_file_counts_within_a_second(tmp_path):
    path = tmp_path / "keys.yaml"
    path.write_text(file_of(a="one"))
    watched = Watched(path)
    assert watched.knows("one")
    path.write_text(file_of(a="two"))
    assert watched.knows("one", after_s=LOOK_EVERY_S / 2)  # not looked at yet
    assert watched.knows("two", after_s=LOOK_EVERY_S / 2) and not watched.knows("one")


def test_a_kubernetes_secret_that_is_swapped_is_seen(tmp_path):
    """Its file is a link through a folder's link; files of one size and time differ in their inode."""
    for version, key in (("v1", "one"), ("v2", "two")):
        (tmp_path / version).mkdir()
        (tmp_path / version / "keys.yaml").write_text(file_of(a=key))
        os.utime(tmp_path / version / "keys.yaml", (1, 1))
    (tmp_path / "..data").symlink_to("v1")
    (tmp_path / "keys.yaml").symlink_to("..data/keys.yaml")
    watched = Watched(tmp_path / "keys.yaml")
    assert watched.knows("one")
    (tmp_path / "new").symlink_to("v2")
    (tmp_path / "new").replace(tmp_path / "..data")
    assert watched.knows("two") and not watched.knows("one")


def test_a_broken_or_missing_file_leaves_the_keys_and_is_told_once(tmp_path, caplog):
    path = tmp_path / "keys.yaml"
    path.write_text(file_of(a="one"))
    watched = Watched(path)
    with caplog.at_level(logging.ERROR, "ray.serve"):
        path.write_text("tenants: 5")
        assert watched.knows("one") and watched.knows("one")
        assert [record.levelname for record in caplog.records] == ["ERROR"] and f"{path}:1: tenants" in caplog.text
        path.unlink()
        assert watched.knows("one") and watched.knows("one")
        assert len(caplog.records) == 2 and "No such file" in caplog.text
    path.write_text(file_of(a="two"))
    assert watched.knows("two") and not watched.knows("one")


def test_many_at_once_look_once(tmp_path, monkeypatch):
    path = tmp_path / "keys.yaml"
    path.write_text(file_of(a="one"))
    watched = Watched(path)
    path.write_text(file_of(a="two"))
    reads = []
    monkeypatch.setattr(tenants, "read", lambda path: reads.append(path) or read(path))
    watched.now += LOOK_EVERY_S

    async def ask():
        return await asyncio.gather(*(watched.file.ring() for _ in range(20)))

    assert all(ring.holder("two") for ring in asyncio.run(ask())) and len(reads) == 1


def test_the_first_reading_fails_aloud(tmp_path):
    with pytest.raises(KeyFileError):
        KeyFile(tmp_path / "no.yaml")
