"""`moray model` as it is typed."""

import json
import re
import shutil

import pytest
from typer.testing import CliRunner

from experts.tiny_r1 import checkpoint_path
from experts.versions import MANIFEST
from ops.cli import app
from ops.errors import UserError


def run(*arguments, env=None):
    return CliRunner().invoke(app, ["model", *map(str, arguments)], env={"COLUMNS": "200", **(env or {})})


@pytest.fixture
def store(tmp_path):
    done = run("add", checkpoint_path(), "--store", tmp_path / "store", "--version", "v1", "--notes", "first")
    assert done.exit_code == 0, done.output
    return tmp_path / "store"


def test_adding_tells_what_it_made_and_what_to_do_next(store, tmp_path):
    golden = tmp_path / "golden.jsonl"
    golden.write_text('{"messages": [{"role": "user", "content": "1+1"}], "answer": "2"}\n')
    accuracy = tmp_path / "accuracy.json"
    accuracy.write_text('{"addition": 0.99}')
    more = ["--parent", "v1", "--golden", golden, "--accuracy", accuracy]
    done = run("add", checkpoint_path(), "--store", store, "--version", "v2", *more, "--json")
    told = json.loads(done.stdout)
    assert (told["name"], told["golden"], told["parent"], told["not_in_place"]) == ("v2", 1, "v1", [])
    done = run("add", checkpoint_path(), "--store", store, "--version", "v3")
    assert "0 golden prompts" in done.stdout and f"--set model.store={store} --set model.version=v3" in done.stdout
    listed = {each["name"]: each for each in json.loads(run("list", "--store", store, "--json").stdout)["versions"]}
    assert list(listed) == ["v1", "v2", "v3"] and listed["v2"]["accuracy"] == {"addition": 0.99}
    assert listed["v2"]["architecture"] == listed["v1"]["architecture"]


def test_a_version_that_cannot_be_swapped_in_says_so(store, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(checkpoint_path(), other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rope_theta": 5.0}))
    done = run("add", other, "--store", store, "--version", "v2", "--parent", "v1")
    assert done.exit_code == 0 and "note: v2's architecture (config.json) is not v1's" in done.stdout


def test_mistakes_are_one_sentence(store, tmp_path):
    for arguments, said in (
        (["--version", "a/b"], "cannot be a version's name"),
        (["--version", "v1"], "a version never changes"),
        (["--version", "v2", "--golden", tmp_path / "x"], "cannot be read"),
        (["--version", "v2", "--accuracy", tmp_path / "x"], "cannot be read"),
        (["--version", "v2", "--parent", "v7"], "has no version v7; it has: v1"),
    ):
        failed = run("add", checkpoint_path(), "--store", store, *arguments)
        assert isinstance(failed.exception, UserError) and said in str(failed.exception)
        assert "\n" not in str(failed.exception)


def test_a_list_shows_versions_and_what_is_none(store):
    (store / "half").mkdir()
    shown = run("list", env={"MORAY_MODEL__STORE": str(store)}).stdout
    assert "first" in shown and re.search(r"half .*holds no moray\.json", shown)
    with_flaw = json.loads(run("list", "--store", store, "--json").stdout)["versions"]
    assert with_flaw[1] == {
        "name": "half",
        "flaw": f"{store}/half is no version: it holds no moray.json; `moray model add` makes one",
    }
    failed = run("list", "--store", store / "nowhere")
    assert isinstance(failed.exception, UserError) and "there is no store" in str(failed.exception)


def test_the_embedded_models_store_is_the_default():
    names = [each["name"] for each in json.loads(run("list", "--json").stdout)["versions"]]
    assert names[0] == "v1" and run("verify", "v1").exit_code == 0


def test_verifying_tells_damages_by_exit_code_and_in_json(store):
    done = run("verify", "--store", store, "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["whole"] is True
    weights = store / "v1" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    done = run("verify", "v1", "--store", store)
    assert done.exit_code == 1 and "v1: corrupt:" in done.stdout
    weights.unlink()
    (store / "v1" / "extra.safetensors").write_text("")
    done = run("verify", "v1", "--store", store, "--json")
    (told,) = json.loads(done.stdout)["versions"]
    assert done.exit_code == 1 and not told["whole"]
    assert {(d["flaw"], d["file"]) for d in told["damages"]} == {
        ("missing", "model.safetensors"),
        ("extra", "extra.safetensors"),
    }
    (store / "v1" / MANIFEST).unlink()
    assert run("verify", "--store", store).exit_code == 1


def test_what_there_is_not_to_verify_is_a_usage_error(store):
    for arguments in (["v9", "--store", store], ["a/b", "--store", store], ["--store", store / "nowhere"]):
        assert run("verify", *arguments).exit_code == 2


@pytest.mark.parametrize("command", ["add", "list", "verify"])
def test_help_has_examples(command):
    assert "Examples: `moray model" in re.sub(r"\s+", " ", run(command, "--help").stdout)
