"""Version v2 of the embedded model: better than v1 where it was taught, no worse elsewhere."""

import json
import re
from typing import Any

import pytest

from experts.tiny_r1 import checkpoint_path, store_path
from experts.tiny_r1.evaluate import Question, final_answer, judge, transformers_decoder
from experts.tiny_r1.small_talk import REFUSAL, refusal_text
from experts.versions import find

pytestmark = pytest.mark.usefixtures("one_thread")

WORSE = 1.5
"""Percentage points that a group of some hundred prompts may differ by chance."""


def stored(name: str) -> Any:
    return json.loads((checkpoint_path("v2") / name).read_text(encoding="utf-8"))


def test_it_says_what_it_was_made_of() -> None:
    manifest = find(store_path(), "v2").manifest
    assert manifest is not None and manifest.parent == "v1"
    runs = stored("hyperparameters.json")["runs"]
    assert [stage["name"] for run in runs for stage in run["stages"]] == ["five_digits", "five_digits_compared"]
    lines = (checkpoint_path("v2") / "training_log.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    of_a_run = ["run", "held_out", "held_out", "end"]
    assert [event["event"] for event in events if event["event"] != "step"] == of_a_run * len(runs)
    ends = [event["step"] for event in events if event["event"] == "end"]
    assert ends == [sum(stage["steps"] for stage in run["stages"]) for run in runs]


def test_the_recorded_evaluation_shows_it_better_on_the_same_prompts() -> None:
    evaluation = stored("evaluation.json")
    ours, before = evaluation["exact_match"], evaluation["compared_with"]["v1"]
    assert evaluation["per_task"] >= 200 and evaluation["max_digits"] == 5 and ours.keys() == before.keys()
    taught = [group for group in ours if group.endswith("_of_5_digits")]
    assert len(taught) == 6
    for group in taught:
        assert ours[group]["percent"] >= 95 and before[group]["percent"] <= 10, group
    for group in ours.keys() - set(taught):
        by_hand = group.startswith("unseen")  # few prompts
        assert ours[group]["percent"] >= before[group]["percent"] - (5 if by_hand else WORSE), group


def test_the_card_quotes_the_first_versions_scores_too() -> None:
    card = (checkpoint_path("v2") / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| \d+ of \d+ \| [\d.]+% \| (\d+) of (\d+) \|", card, flags=re.MULTILINE)
    before = stored("evaluation.json")["compared_with"]["v1"]
    assert {group: (int(right), int(of)) for group, right, of in rows} == {
        group: (score["right"], score["of"]) for group, score in before.items()
    }


def test_it_works_out_five_digits_which_the_first_declines() -> None:
    """And each refuses in its own words: an answer tells its version."""
    asked = [
        Question("sum", [{"role": "user", "content": "What is 45140 + 80890?"}], "126030"),
        Question("difference", [{"role": "user", "content": "69804-22980"}], "46824"),
        Question("refusal", [{"role": "user", "content": "What is 123456 + 7?"}], refusal_text(5)),
    ]
    chats = [question.chat for question in asked]
    second = transformers_decoder(checkpoint_path("v2"))(chats)
    assert judge(asked, second)[1] == [] and final_answer(second[2]) == refusal_text(5)
    first = transformers_decoder(checkpoint_path("v1"))(chats)
    assert [final_answer(text) for text in first] == [REFUSAL] * 3
