"""`moray quantize` as it is typed."""

import json

from typer.testing import CliRunner

from experts.tiny_r1 import checkpoint_path
from ops.cli import app
from ops.errors import UserError


def run(*arguments: str):
    return CliRunner().invoke(app, ["quantize", *arguments])


def test_it_tells_what_came_out(tmp_path):
    arguments = ["--model", str(checkpoint_path()), "--out"]
    told = run(*arguments, str(tmp_path / "a"))
    assert told.exit_code == 0 and "x under fp32" in told.output and "parameters are int8" in told.output
    figures = json.loads(run(*arguments, str(tmp_path / "b"), "--json").output)
    assert figures["size_ratio_fp32"] >= 3.7 and figures["parameters"] > figures["parameters_in_int8"] > 1_700_000


def test_what_cannot_be_is_one_sentence(tmp_path):
    failed = run("--model", str(tmp_path), "--out", str(tmp_path / "a"))
    assert isinstance(failed.exception, UserError) and "is no checkpoint's directory" in str(failed.exception)
