"""Versions of a model: manifests, stores, damages, fingerprints."""

import json
import shutil

import pytest

from experts.tiny_r1 import checkpoint_path
from experts.versions import (
    MANIFEST,
    BadVersion,
    FileDigest,
    Flaw,
    Golden,
    Manifest,
    check_name,
    checkpoint_files,
    compatible,
    find,
    fingerprints,
    read,
    sha256,
    verify,
    versions,
    write,
)


@pytest.fixture
def store(tmp_path):
    """v1: a small checkpoint in two weight files, one in a subdirectory."""
    directory = tmp_path / "store" / "v1"
    (directory / "more").mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(checkpoint_path() / name, directory / name)
    (directory / "a.safetensors").write_bytes(bytes(range(256)) * 40)
    (directory / "more" / "b.safetensors").write_bytes(b"b" * 100)
    add(directory)
    return tmp_path / "store"


def add(directory, created="2026-11-25T10:00:00Z", **more):
    files = {p: FileDigest(sha256=sha256(directory / p), bytes=(directory / p).stat().st_size)
             for p in checkpoint_files(directory)}  # fmt: skip
    prints = fingerprints(directory)
    manifest = Manifest(
        name=directory.name, created=created, files=files, architecture=prints.architecture, text=prints.text, **more
    )
    write(directory, manifest)
    return manifest


def damages(directory):
    return {(damage.flaw, damage.file) for damage in verify(directory)}


def test_a_manifest_comes_back_as_it_was_written(store):
    golden = Golden(
        prompt=({"role": "user", "content": "1+1"},), prompt_token_ids=(1, 2), answer="2", answer_token_ids=(50,),
        logprobs=(-0.5,),
    )  # fmt: skip
    made = add(
        store / "v1", parent="v0", notes="first", golden=(golden,), accuracy={"addition": 0.99}, weights={"l": "d"}
    )
    assert read(store / "v1") == made
    assert made.sha256["more/b.safetensors"] == sha256(store / "v1" / "more" / "b.safetensors")
    assert made.bytes == sum((store / "v1" / path).stat().st_size for path in made.files)
    assert sorted(path.name for path in (store / "v1").iterdir() if path.name.startswith(".")) == []


def test_what_was_added_is_whole_and_progress_ends_with_all_bytes(store):
    told = []
    assert verify(store / "v1", lambda *args: told.append(args)) == []
    assert told[-1][1] == told[-1][2] == read(store / "v1").bytes
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_one_changed_bit_is_found(store):
    file = store / "v1" / "a.safetensors"
    content = bytearray(file.read_bytes())
    content[5000] ^= 1
    file.write_bytes(content)
    (damage,) = verify(store / "v1")
    assert (damage.flaw, damage.file) == (Flaw.CORRUPT, "a.safetensors") and "SHA-256" in str(damage)


def test_each_damage_has_its_name_and_is_told_without_reading(store):
    directory = store / "v1"
    (directory / "a.safetensors").write_bytes(b"short")
    (directory / "more" / "b.safetensors").unlink()
    (directory / "more" / "c.safetensors").write_bytes(b"")
    (directory / ".hidden").write_bytes(b"")
    with (directory / "tokenizer.json").open("a") as stream:
        stream.write("\n")

    def no_reading(*_):
        raise AssertionError("hashed although the sizes tell")

    found = {(damage.flaw, damage.file) for damage in verify(directory, no_reading)}
    assert found == {
        (Flaw.TRUNCATED, "a.safetensors"),
        (Flaw.MISSING, "more/b.safetensors"),
        (Flaw.EXTRA, "more/c.safetensors"),
        (Flaw.CORRUPT, "tokenizer.json"),
    }


def test_a_directory_without_a_manifest_is_no_version(store):
    (store / "half").mkdir()
    (store / ".adding-v9").mkdir()
    (store / "file").write_text("")
    assert damages(store / "half") == {(Flaw.MANIFEST, MANIFEST)}
    whole, half = versions(store)
    assert (whole.name, whole.flaw, half.name, half.manifest) == ("v1", "", "half", None)
    assert "holds no moray.json" in half.flaw
    with pytest.raises(BadVersion, match=r"half is no version"):
        find(store, "half")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is damaged"),
        ('{"format": 1}', "is damaged"),
        ('{"format": 9, "name": "v1", "created": "", "files": {}, "architecture": "", "text": ""}', "has format 9"),
        ('{"name": "v2", "created": "", "files": {}, "architecture": "", "text": ""}', "is of version 'v2'"),
        (
            '{"name": "v1", "created": "", "architecture": "", "text": "", "files": '
            '{"../x": {"sha256": "", "bytes": 1}}}',
            "outside its directory",
        ),
    ],
)
def test_a_bad_manifest_is_one_sentence(store, text, said):
    (store / "v1" / MANIFEST).write_text(text)
    with pytest.raises(BadVersion, match=said):
        read(store / "v1")
    assert damages(store / "v1") == {(Flaw.MANIFEST, MANIFEST)}


def test_versions_stand_in_the_order_of_their_making(store):
    for name, created in (("a", "2026-11-25T12:00:00Z"), ("b", "2026-11-25T11:00:00Z")):
        shutil.copytree(store / "v1", store / name)
        add(store / name, created)
    assert [version.name for version in versions(store)] == ["v1", "b", "a"]
    assert find(store, "b").directory == store / "b"
    with pytest.raises(BadVersion, match=r"no version v7; it has: v1, b, a"):
        find(store, "v7")
    with pytest.raises(BadVersion, match="there is no store"):
        versions(store / "nowhere")


@pytest.mark.parametrize("name", ["v2", "2026-11-25", "r1.5_b", "A" * 63])
def test_plain_words_are_names(name):
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", ".v2", "a/b", "v 2", "v2\n", "-v", "ü", "x.part", "A" * 64, "../v2"])
def test_other_names_are_refused(name):
    with pytest.raises(BadVersion, match="cannot be a version's name"):
        check_name(name)


def changed(directory, name, **keys):
    file = directory / name
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


def test_what_says_nothing_of_a_model_changes_no_fingerprint(store):
    before = fingerprints(store / "v1")
    changed(store / "v1", "config.json", transformers_version="9", _name_or_path="x", router_aux_loss_coef=0.5)
    changed(store / "v1", "generation_config.json", transformers_version="9")
    (store / "v1" / "README.md").write_text("other")
    assert fingerprints(store / "v1") == before


@pytest.mark.parametrize(
    ("name", "keys", "architecture", "text"),
    [
        ("config.json", {"num_experts": 16}, True, False),
        ("config.json", {"rope_theta": 5}, True, False),
        ("config.json", {"quantization_config": {"format": "int-quantized"}}, True, False),
        ("config.json", {"eos_token_id": 1}, False, True),
        ("tokenizer_config.json", {"chat_template": "other"}, False, True),
        ("generation_config.json", {"temperature": 0.6}, False, True),
    ],
)
def test_what_differs_shows_in_its_fingerprint(store, name, keys, architecture, text):
    old = read(store / "v1")
    shutil.copytree(store / "v1", store / "v2")
    changed(store / "v2", name, **keys)
    new = add(store / "v2")
    assert (old.architecture != new.architecture, old.text != new.text) == (architecture, text)
    reasons = compatible(old, new)
    assert len(reasons) == architecture + text
    assert any("replicas of its own" in reason for reason in reasons) == architecture
    assert any("application of its own" in reason for reason in reasons) == text
    assert compatible(old, old) == []


def test_the_older_name_of_the_dtype_is_the_same(store):
    changed(store / "v1", "config.json", dtype="bfloat16")
    newer = fingerprints(store / "v1")
    config = json.loads((store / "v1" / "config.json").read_text())
    config["torch_dtype"] = config.pop("dtype")
    (store / "v1" / "config.json").write_text(json.dumps(config))
    assert fingerprints(store / "v1") == newer


def test_a_directory_without_a_config_has_no_fingerprints(tmp_path):
    with pytest.raises(BadVersion, match=r"config\.json cannot be read"):
        fingerprints(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(BadVersion, match="holds no object"):
        fingerprints(tmp_path)
