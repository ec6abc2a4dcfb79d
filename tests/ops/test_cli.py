import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from ops.cli import app


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch):
    monkeypatch.delenv("MORAY_CONFIG", raising=False)


def run(*arguments, **options):
    return CliRunner().invoke(app, list(arguments), **options)


def test_help_imports_nothing_heavy():
    code = "import sys, ops.cli; print(*{'ray', 'vllm', 'torch', 'pydantic', 'httpx', 'psutil'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


@pytest.mark.parametrize("command", ["up", "status", "ask", "down", "config", "doctor", "metrics"])
def test_every_command_shows_examples(command):
    result = run(command, "--help")
    assert result.exit_code == 0 and "Examples:" in result.output and f"moray {command}" in result.output


def test_config_tells_where_each_value_comes_from(tmp_path):
    file = tmp_path / "moray.yaml"
    file.write_text("router:\n  max_queue: 7\n")
    result = run(
        "config", "--json", "-c", str(file), "--port", "8001", "--set", "engine.max_num_seqs=3",
        env={"MORAY_LOG__LEVEL": "error"},
    )  # fmt: skip
    assert result.exit_code == 0
    shown = json.loads(result.output)
    assert shown["settings"]["gateway"]["port"] == 8001 and shown["origins"]["gateway.port"] == "command line"
    assert shown["settings"]["engine"]["max_num_seqs"] == 3
    assert shown["origins"]["router.max_queue"] == f"{file}:2"
    assert shown["settings"]["log"]["level"] == "ERROR" and shown["origins"]["log.level"] == "MORAY_LOG__LEVEL"


def test_config_as_a_table_explains():
    result = run("config", "--explain", env={"COLUMNS": "200"})
    assert "router.max_queue" in result.output and "answered with 429" in result.output


def test_the_settings_file_can_be_named_by_the_environment(tmp_path):
    file = tmp_path / "moray.yaml"
    file.write_text("gateway: {port: 8111}\n")
    assert '"port": 8111' in run("config", "--json", env={"MORAY_CONFIG": str(file)}).output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "gateway.prot=1"], "did you mean gateway.port?"),
        (["--set", "gateway.port"], "write it as key=value"),
        (["--port", "99999"], "gateway.port (command line)"),
        (["--config", "/nowhere.yaml"], "cannot read the settings file /nowhere.yaml"),
    ],
)
def test_mistakes_in_settings_are_one_message_and_exit_code_2(arguments, said):
    result = run("config", *arguments)
    assert result.exit_code == 2 and said in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("command", [["status"], ["ask", "hello"]])
def test_commands_that_need_a_session_say_how_to_start_one(command):
    done = subprocess.run([sys.executable, "-m", "ops.cli", *command], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: no session runs; `moray up` starts one\n"


def test_down_without_a_session_is_fine():
    result = run("down")
    assert (result.exit_code, result.output) == (0, "no session runs\n")


def test_doctor_reports_as_json():
    findings = json.loads(run("doctor", "--json").output)
    assert {"Python", "memory", "/dev/shm", "ray", "gateway port"} <= {f["what"] for f in findings}
    assert all(f["way_out"] for f in findings if f["level"] != "ok")


def test_doctor_fails_if_something_is_missing(tmp_path):
    result = run("doctor", "--model", str(tmp_path / "nowhere"), env={"COLUMNS": "300"})
    assert result.exit_code == 1 and "does not exist" in result.output


def test_a_profile_is_shown_on_a_machine_that_cannot_run_it():
    result = run("config", "--json", "--profile", "16b", "--set", "replicas.count=3")
    shown = json.loads(result.output)
    assert result.exit_code == 0 and any("no model is given" in sentence for sentence in shown["lacking"])
    assert shown["origins"]["model.max_model_len"] == "profile 16b" and shown["settings"]["model"]["profile"] == "16b"
    assert (shown["settings"]["replicas"]["count"], shown["origins"]["replicas.count"]) == (3, "command line")
    assert "not here: model.profile is 16b" in run("config", "--profile", "16b", env={"COLUMNS": "200"}).output
    refused = run("up", "--profile", "16b")
    assert refused.exit_code == 2 and "no model is given" in refused.stderr
