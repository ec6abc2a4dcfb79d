"""A minute budget of training learns, and what is exported computes the same."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from experts.tiny_r1 import checkpoint_path
from experts.tiny_r1.batches import WIDTHS, collate, width_for
from experts.tiny_r1.curriculum import CURRICULUM, FURTHER, stage_named
from experts.tiny_r1.export import export
from experts.tiny_r1.model import ModelShape, TinyR1, expert_shares, load_balance_loss, load_weights, save_weights
from experts.tiny_r1.tokenizer import PAD_ID, VOCAB_SIZE
from experts.tiny_r1.train import Hyperparameters, learning_rate, plan, started_from, train

SMALL = ModelShape(hidden_size=32, num_layers=2, head_dim=8, expert_width=16)


pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_stage_asks_at_least_as_much_as_the_one_before() -> None:
    for earlier, later in itertools.pairwise(CURRICULUM):
        assert later.max_digits >= earlier.max_digits
        assert later.mix.max_turns >= earlier.mix.max_turns
        assert later.mix.system_prompt >= earlier.mix.system_prompt
        assert later.mix.max_context >= earlier.mix.max_context
        assert set(later.mix.weights) >= set(earlier.mix.weights)
        assert later != earlier
    assert sum(stage.share for stage in CURRICULUM) == pytest.approx(1.0)


def test_an_unknown_stage_is_refused() -> None:
    with pytest.raises(ValueError, match="two_digits"):
        stage_named("six_digits")


def test_further_stages_ask_more_than_the_last_and_forget_none_of_its_tasks() -> None:
    assert FURTHER[0].max_digits > CURRICULUM[-1].max_digits
    for earlier, later in itertools.pairwise((CURRICULUM[-1], *FURTHER)):
        assert later.max_digits >= earlier.max_digits and later != earlier
        assert set(later.mix.weights) >= set(earlier.mix.weights)
        assert stage_named(later.name) is later


def test_training_starts_from_a_checkpoint_or_a_model_file(tmp_path: Path) -> None:
    stored = load_file(checkpoint_path() / "model.safetensors")
    model = started_from(checkpoint_path())
    assert torch.equal(model.lm_head.weight, stored["lm_head.weight"])
    save_weights(model, tmp_path / "model.pt")
    assert torch.equal(started_from(tmp_path / "model.pt").lm_head.weight, stored["lm_head.weight"])
    assert started_from(None).shape == ModelShape()


def test_a_short_run_lowers_the_loss(tmp_path: Path) -> None:
    torch.manual_seed(0)
    hyper = Hyperparameters(
        tokens=80 * 1024, tokens_per_batch=1024, warmup_steps=10, learning_rate=1e-2, held_out=4, log_every=5
    )
    train(TinyR1(SMALL), [CURRICULUM[0]], hyper, torch.device("cpu"), tmp_path)
    events = [json.loads(line) for line in (tmp_path / "training_log.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in events if event["event"] == "step"]
    assert losses[-1] < 0.6 * losses[0]
    assert (events[0]["event"], events[0]["step"]) == ("held_out", 0)  # what it could do before
    assert events[-1]["event"] == "end"
    settings = json.loads((tmp_path / "hyperparameters.json").read_text())
    assert settings["hyperparameters"]["tokens"] == hyper.tokens
    assert load_weights(tmp_path / "model.pt").shape == SMALL


def test_exported_logits_equal_the_training_model(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model = TinyR1(ModelShape()).eval()
    export(model, tmp_path / "checkpoint")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint", dtype=torch.float32).eval()
    ids = torch.randint(0, VOCAB_SIZE, (2, 200))
    with torch.no_grad():
        assert torch.allclose(theirs(ids).logits, model(ids).logits, atol=1e-4)


def test_weights_make_the_round_trip(tmp_path: Path) -> None:
    model = TinyR1(SMALL)
    save_weights(model, tmp_path / "model.pt")
    again = load_weights(tmp_path / "model.pt")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_padding_does_not_change_what_comes_before_it() -> None:
    torch.manual_seed(2)
    model = TinyR1(SMALL).eval()
    ids = torch.randint(0, 256, (1, 20))
    padded = torch.cat((ids, torch.full((1, 12), PAD_ID)), dim=1)
    with torch.no_grad():
        assert torch.allclose(model(padded).logits[:, :20], model(ids).logits, atol=1e-5)


def test_the_balance_loss_is_least_when_experts_share_alike() -> None:
    torch.manual_seed(3)
    model = TinyR1(SMALL).eval()
    ids = torch.randint(0, 256, (4, 50))
    real = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        output = model(ids)
        even = output._replace(router_probs=torch.full_like(output.router_probs, 1 / SMALL.num_experts))
        one = torch.zeros_like(output.router_probs)
        one[..., 0] = 1.0
        crowded = output._replace(router_probs=one, chosen=one > 0)
    assert load_balance_loss(even, real).item() == pytest.approx(1.0)
    assert load_balance_loss(crowded, real).item() == pytest.approx(SMALL.num_experts)
    assert expert_shares(output.chosen, real).sum(dim=-1).tolist() == pytest.approx([1.0] * SMALL.num_layers)


def test_only_completions_are_learned() -> None:
    batch = collate([([1, 2, 3, 4, 5], 3)], width=8)
    assert batch.tokens.tolist() == [[1, 2, 3, 4, 5, PAD_ID, PAD_ID, PAD_ID, PAD_ID]]
    targets = batch.tokens[:, 1:][batch.learned]
    assert np.array_equal(targets, [4, 5])


def test_widths_hold_what_is_sorted_into_them() -> None:
    assert width_for(1) == WIDTHS[0]
    assert width_for(WIDTHS[0] + 1) == WIDTHS[1]
    assert width_for(WIDTHS[-1] + 1) is None


def test_the_rate_warms_up_and_ends_at_nothing() -> None:
    hyper = Hyperparameters(warmup_steps=10, decay_from=0.5, learning_rate=1.0)
    rates = [learning_rate(step, 100, hyper) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[20] == 1.0
    assert rates[75] == pytest.approx(0.5)
    assert rates[100] == 0.0


def test_a_plan_gives_every_stage_its_share() -> None:
    steps = plan(CURRICULUM, Hyperparameters(tokens=100 * 1024, tokens_per_batch=1024))
    assert steps == [10, 15, 25, 50]
