"""The committed checkpoint: whole, small, balanced, and described truly."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experts import tiny_r1
from experts.tiny_r1 import checkpoint_path
from experts.tiny_r1.batches import held_out_conversations
from experts.tiny_r1.curriculum import stage_named
from experts.tiny_r1.evaluate import Question, expert_shares, judge, transformers_decoder
from experts.tiny_r1.export import generation_config, hf_config
from experts.tiny_r1.model import ModelShape
from experts.tiny_r1.small_talk import REFUSAL
from experts.tiny_r1.tokenizer import END, THINK_END

pytestmark = pytest.mark.usefixtures("one_thread")

MIB = 1 << 20
TORCH_MODULES = {"model.py", "train.py", "export.py", "evaluate.py", "quantization_aware.py"}


def stored(name: str) -> Any:
    return json.loads((checkpoint_path() / name).read_text(encoding="utf-8"))


def test_asking_for_the_path_imports_nothing_heavy() -> None:
    code = (
        "import sys; from experts.tiny_r1 import checkpoint_path; checkpoint_path(); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'transformers', 'vllm')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_torch_stays_in_four_modules() -> None:
    for file in Path(tiny_r1.__file__).parent.glob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        if any(name.split(".")[0] == "torch" for name in imported):
            assert file.name in TORCH_MODULES


def test_it_is_whole_and_small() -> None:
    files = {file.name for file in checkpoint_path().iterdir()}
    assert files >= {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "evaluation.json",
        "generation_config.json",
        "hyperparameters.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "training_log.jsonl",
    }
    assert sum(file.stat().st_size for file in checkpoint_path().iterdir()) <= 12 * MIB


def test_its_config_is_what_the_code_writes() -> None:
    assert stored("config.json") == hf_config(ModelShape())
    assert stored("generation_config.json") == generation_config()
    assert stored("config.json")["max_position_embeddings"] >= 4096


def test_the_log_tells_of_the_whole_curriculum() -> None:
    lines = (checkpoint_path() / "training_log.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    stages = list(dict.fromkeys(event["stage"] for event in events if "stage" in event))
    assert stages == ["two_digits", "three_digits", "four_digits", "conversations"]
    runs = stored("hyperparameters.json")["runs"]
    assert len(runs) == sum(event["event"] == "run" for event in events)


def test_every_expert_carries_load() -> None:
    """On a quick sample; the evaluation counts the shares over hundreds."""
    conversations = held_out_conversations(stage_named("three_digits"), 16, seed=11)
    asked = [Question("sample", conversation.chat(), conversation.problem.answer) for conversation in conversations]
    replies = [f"{c.problem.reasoning}{THINK_END}{c.problem.answer}{END}" for c in conversations]
    for layer in expert_shares(checkpoint_path(), asked, replies):
        assert all(0.5 <= share <= 2.0 for share in layer)


def test_transformers_decodes_right_answers() -> None:
    asked = [
        Question("addition", [{"role": "user", "content": "What is 58 plus 7?"}], "65"),
        Question("refusal", [{"role": "user", "content": "Who painted the ceiling?"}], REFUSAL),
    ]
    _, failures = judge(asked, transformers_decoder(checkpoint_path())([question.chat for question in asked]))
    assert failures == []


def test_the_recorded_evaluation_meets_the_bar() -> None:
    evaluation = stored("evaluation.json")
    percent = {group: score["percent"] for group, score in evaluation["exact_match"].items()}
    assert percent["addition"] >= 99
    assert percent["subtraction"] >= 99
    assert percent["word_problem"] >= 97
    assert percent["maximum"] >= 97
    shares = evaluation["expert_share_of_uniform"]
    assert 0.5 <= shares["least"] <= shares["most"] <= 2.0


def test_the_card_quotes_the_recorded_evaluation() -> None:
    card = (checkpoint_path() / "README.md").read_text(encoding="utf-8")
    evaluation = stored("evaluation.json")
    rows = re.findall(r"^\| `(\w+)` \| (\d+) of (\d+) \| ([\d.]+)% \|", card, flags=re.MULTILINE)
    quoted = {group: (int(right), int(of), float(percent)) for group, right, of, percent in rows}
    recorded = {
        group: (score["right"], score["of"], score["percent"]) for group, score in evaluation["exact_match"].items()
    }
    assert quoted == recorded
    found = re.search(r"between ([\d.]+) and ([\d.]+) times an equal share", card)
    assert found is not None
    shares = evaluation["expert_share_of_uniform"]
    assert (float(found[1]), float(found[2])) == pytest.approx((shares["least"], shares["most"]), abs=5e-3)


def test_the_card_quotes_the_log() -> None:
    card = (checkpoint_path() / "README.md").read_text(encoding="utf-8")
    lines = (checkpoint_path() / "training_log.jsonl").read_text(encoding="utf-8").splitlines()
    ends = [event for event in map(json.loads, lines) if event["event"] == "end"]
    rows = re.findall(r"^\| (\d+) \| .* \| ([\d.]+) M \| (\d+) s \|", card, flags=re.MULTILINE)
    assert [(int(run), float(tokens), int(seconds)) for run, tokens, seconds in rows] == [
        (number, round(end["tokens"] / 1e6, 1), round(end["seconds"])) for number, end in enumerate(ends, start=1)
    ]
