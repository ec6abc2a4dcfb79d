"""Golden prompts: lines of a file become token ids as the model sees and emits them."""

import json

import pytest

from experts.tiny_r1 import checkpoint_path
from experts.tiny_r1.tokenizer import THINK, TOKEN_ID, USER, encode_prompt
from experts.versions import BadVersion
from ops.models import golden
from ops.models.golden import Written, encoded, read


def write(tmp_path, *lines):
    file = tmp_path / "golden.jsonl"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return file


def test_a_chat_gets_the_checkpoints_template_and_an_answer_its_own_ids(tmp_path):
    chat = [{"role": "user", "content": "What is 27 + 71?"}]
    (line,) = read(write(tmp_path, {"messages": chat, "answer": "98"}, ""))
    (made,) = encoded([line], checkpoint_path())
    assert list(made.prompt_token_ids) == [*encode_prompt([(USER, "What is 27 + 71?")]), TOKEN_ID[THINK]]
    assert made.answer_token_ids == (ord("9"), ord("8")) and list(made.prompt) == chat
    assert (made.max_tokens, made.logprobs) == (256, None)


def test_a_text_is_taken_as_it_is(tmp_path):
    lines = read(
        write(tmp_path, {"prompt": "12+34=", "logprobs": [-1.0] * 5, "max_tokens": 8, "answer_token_ids": [7]})
    )
    (made,) = encoded(lines, checkpoint_path())
    assert made.prompt_token_ids == tuple(b"12+34=") and made.prompt == "12+34="
    assert (made.logprobs, made.max_tokens, made.answer_token_ids) == ((-1.0,) * 5, 8, (7,))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", r"golden\.jsonl:2 is no golden prompt"),
        ({"prompt": "a", "answer": 7}, r":2 is no golden prompt: .*answer"),
        ({"promt": "a", "answer": "7"}, r":2 is no golden prompt: .*promt"),
        ({"answer": "7"}, "either `prompt` or `messages`"),
        ({"prompt": "a", "messages": [], "answer": "7"}, "either `prompt` or `messages`"),
        ({"prompt": "a"}, ":2 asks for nothing"),
        ({"prompt": "a", "answer": "7", "max_tokens": 0}, "max_tokens must be 1 or more"),
    ],
)
def test_a_bad_line_is_told_by_its_number(tmp_path, line, said):
    with pytest.raises(BadVersion, match=said):
        read(write(tmp_path, {"prompt": "a", "answer": "7"}, line))


def test_files_without_golden_prompts_are_told(tmp_path):
    with pytest.raises(BadVersion, match="holds no golden prompts"):
        read(write(tmp_path, "", ""))
    with pytest.raises(BadVersion, match="cannot be read: No such file"):
        read(tmp_path / "nowhere")
    (tmp_path / "x").write_bytes(b"\xff")
    with pytest.raises(BadVersion, match="not UTF-8"):
        read(tmp_path / "x")


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (Written(prompt="abc", logprobs=(-1.0,)), "has 1 logprobs, but its prompt is 3 tokens long: .* is 2"),
        (Written(prompt="", answer="7"), "is empty"),
        (
            Written(messages=({"role": "wizard", "content": "a"},), answer="7"),
            "does not fit the checkpoint's chat template",
        ),
    ],
)
def test_what_the_checkpoint_cannot_take_is_told(written, said):
    with pytest.raises(BadVersion, match=f"golden prompt 1 .*{said}|golden prompt 1 {said}"):
        encoded([written], checkpoint_path())


def test_a_checkpoint_without_a_tokenizer_is_told(tmp_path):
    with pytest.raises(BadVersion, match=r"the tokenizer of .* cannot be loaded"):
        encoded([Written(prompt="a", answer="7")], tmp_path)


class Merging:
    """A tokenizer without `</think>` whose tokens may reach over the end of the prompt."""

    def get_vocab(self):
        return {}

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [text[i : i + 2] for i in range(0, len(text), 2)]}

    def decode(self, ids):
        return "".join(ids)


def test_without_thinking_an_answer_is_what_follows_the_prompt(monkeypatch):
    monkeypatch.setattr(golden, "_tokenizer", lambda _: Merging())
    (made,) = encoded([Written(prompt="abcd", answer="ef")], checkpoint_path())
    assert made.answer_token_ids == ("ef",)
    with pytest.raises(BadVersion, match="give its answer_token_ids"):
        encoded([Written(prompt="abc", answer="de")], checkpoint_path())
