"""The committed versions: whole, small, balanced, and described truly."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from experts import tiny_r1
from experts.tiny_r1 import checkpoint_path, store_path
from experts.tiny_r1.batches import held_out_conversations
from experts.tiny_r1.curriculum import stage_named
from experts.tiny_r1.evaluate import Question, expert_shares, judge, transformers_decoder
from experts.tiny_r1.export import generation_config, hf_config, load_checkpoint
from experts.tiny_r1.golden import log_probabilities, prompt_ids
from experts.tiny_r1.model import ModelShape
from experts.tiny_r1.small_talk import REFUSAL
from experts.tiny_r1.tokenizer import END, THINK_END, decode
from experts.versions import compatible, fingerprints, read, verify, versions

pytestmark = pytest.mark.usefixtures("one_thread")

MIB = 1 << 20
TORCH_MODULES = {"model.py", "train.py", "export.py", "evaluate.py", "golden.py", "quantization_aware.py"}
VERSIONS = [version.name for version in versions(store_path())]
every_version = pytest.mark.parametrize("version", VERSIONS)


def stored(name: str, version: str = "v1") -> Any:
    return json.loads((checkpoint_path(version) / name).read_text(encoding="utf-8"))


def test_each_version_is_what_its_manifest_says() -> None:
    found = versions(store_path())
    assert [version.flaw for version in found] == [""] * len(found)
    for version in found:
        assert verify(version.directory) == [], "add it again: see CONTRIBUTING.md"
        assert version.manifest is not None
        assert fingerprints(version.directory) == (version.manifest.architecture, version.manifest.text)
        assert len(version.manifest.golden) >= 16
        assert version.manifest.accuracy == stored("evaluation.json", version.name)
        assert compatible(found[0].manifest, version.manifest) == []  # they can be swapped in place


@every_version
def test_golden_prompts_are_of_the_checkpoint(version: str) -> None:
    manifest = read(checkpoint_path(version))
    model = load_checkpoint(checkpoint_path(version)).eval()
    for golden in manifest.golden:
        question = Question("golden", cast("Sequence[dict[str, str]]", golden.prompt), golden.answer)
        assert prompt_ids(question) == list(golden.prompt_token_ids)
        assert decode(golden.answer_token_ids) == golden.answer
        assert log_probabilities(model, golden.prompt_token_ids) == pytest.approx(golden.logprobs, abs=1e-4)


def test_asking_for_the_path_imports_nothing_heavy() -> None:
    code = (
        "import sys; from experts.tiny_r1 import checkpoint_path; checkpoint_path(); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'transformers', 'vllm')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_torch_stays_in_few_modules() -> None:
    for file in Path(tiny_r1.__file__).parent.glob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        if any(name.split(".")[0] == "torch" for name in imported):
            assert file.name in TORCH_MODULES


@every_version
def test_it_is_whole_and_small(version: str) -> None:
    files = {file.name for file in checkpoint_path(version).iterdir()}
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
    assert sum(file.stat().st_size for file in checkpoint_path(version).iterdir()) <= 12 * MIB


@every_version
def test_its_config_is_what_the_code_writes(version: str) -> None:
    assert stored("config.json", version) == hf_config(ModelShape())
    assert stored("generation_config.json", version) == generation_config()
    assert stored("config.json", version)["max_position_embeddings"] >= 4096


def test_the_log_tells_of_the_whole_curriculum() -> None:
    lines = (checkpoint_path() / "training_log.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    stages = list(dict.fromkeys(event["stage"] for event in events if "stage" in event))
    assert stages == ["two_digits", "three_digits", "four_digits", "conversations"]
    runs = stored("hyperparameters.json")["runs"]
    assert len(runs) == sum(event["event"] == "run" for event in events)


@every_version
def test_every_expert_carries_load(version: str) -> None:
    """On a quick sample; the evaluation counts the shares over hundreds."""
    conversations = held_out_conversations(stage_named("three_digits"), 16, seed=11)
    asked = [Question("sample", conversation.chat(), conversation.problem.answer) for conversation in conversations]
    replies = [f"{c.problem.reasoning}{THINK_END}{c.problem.answer}{END}" for c in conversations]
    for layer in expert_shares(checkpoint_path(version), asked, replies):
        assert all(0.5 <= share <= 2.0 for share in layer)


@every_version
def test_transformers_decodes_right_answers(version: str) -> None:
    asked = [
        Question("addition", [{"role": "user", "content": "What is 58 plus 7?"}], "65"),
        Question("refusal", [{"role": "user", "content": "Who painted the ceiling?"}], REFUSAL),
    ]
    _, failures = judge(asked, transformers_decoder(checkpoint_path(version))([question.chat for question in asked]))
    assert failures == []


@every_version
def test_the_recorded_evaluation_meets_the_bar(version: str) -> None:
    evaluation = stored("evaluation.json", version)
    percent = {group: score["percent"] for group, score in evaluation["exact_match"].items()}
    assert percent["addition"] >= 99
    assert percent["subtraction"] >= 99
    assert percent["word_problem"] >= 97
    assert percent["maximum"] >= 97
    shares = evaluation["expert_share_of_uniform"]
    assert 0.5 <= shares["least"] <= shares["most"] <= 2.0


@every_version
def test_the_card_quotes_the_recorded_evaluation(version: str) -> None:
    card = (checkpoint_path(version) / "README.md").read_text(encoding="utf-8")
    evaluation = stored("evaluation.json", version)
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


@every_version
def test_the_card_quotes_the_log(version: str) -> None:
    card = (checkpoint_path(version) / "README.md").read_text(encoding="utf-8")
    lines = (checkpoint_path(version) / "training_log.jsonl").read_text(encoding="utf-8").splitlines()
    ends = [event for event in map(json.loads, lines) if event["event"] == "end"]
    rows = re.findall(r"^\| (\d+) \| .* \| ([\d.]+) M \| (\d+) s \|", card, flags=re.MULTILINE)
    assert [(int(run), float(tokens), int(seconds)) for run, tokens, seconds in rows] == [
        (number, round(end["tokens"] / 1e6, 1), round(end["seconds"])) for number, end in enumerate(ends, start=1)
    ]
