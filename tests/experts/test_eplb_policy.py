"""Our policy where vLLM's EPLB calls it: its interface, its default policy's promises, its own transfers."""

from __future__ import annotations

import inspect
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.eplb_policy import EplbPolicy, install
from experts.plan import BadPlan, Placement
from experts.vllm_plugin import _place_experts_as_loaded

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def vllm_eplb() -> types.SimpleNamespace:
    from vllm.distributed.eplb import eplb_state, policy, rebalance_execute

    return types.SimpleNamespace(policy=policy, state=eplb_state, execute=rebalance_execute)


def imbalance(weight: torch.Tensor, slots: torch.Tensor, ranks: int) -> float:
    experts = slots.numpy().reshape(len(slots), ranks, -1)
    return float(Placement(experts, weight.shape[1]).imbalance(weight.double().numpy()).mean())


@st.composite
def calls(draw: st.DrawFn) -> tuple[torch.Tensor, int, int, int, int]:
    """(weight, num_replicas, num_groups, num_nodes, num_ranks) as `EplbState.rearrange` makes them."""
    nodes = draw(st.sampled_from([1, 2]))
    ranks = nodes * draw(st.sampled_from([1, 2, 3]))
    groups = draw(st.sampled_from([1, 2, 4]))
    experts = draw(st.sampled_from([4, 8, 12]))
    slots = -(-experts // ranks) + draw(st.integers(0, 2))
    counts = draw(st.lists(st.integers(0, 5000), min_size=2 * experts, max_size=2 * experts))
    return torch.tensor(counts, dtype=torch.int32).reshape(2, experts), slots * ranks, groups, nodes, ranks


@settings(max_examples=25, deadline=None)
@given(calls())
def test_a_call_gives_each_expert_a_slot_as_the_interface_says(call) -> None:
    weight, slots = call[:2]
    made = EplbPolicy.rebalance_experts(*call)
    assert made.shape == (2, slots) and made.dtype == torch.int64 and made.device.type == "cpu"
    for layer in made:
        assert set(layer.tolist()) == set(range(weight.shape[1]))
    assert torch.equal(made, EplbPolicy.rebalance_experts(*call))  # every rank computes it for itself


@settings(max_examples=25, deadline=None)
@given(calls(), st.integers(0, 2**31))
def test_what_stays_on_its_rank_stays_in_its_slot(call, seed) -> None:
    weight, slots, groups, nodes, ranks = call
    old = EplbPolicy.rebalance_experts(*call)
    later = (weight * torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed))).int()
    made = EplbPolicy.rebalance_experts(later, slots, groups, nodes, ranks, old)
    before, after = (t.numpy().reshape(2, ranks, -1) for t in (old, made))
    for was, now in zip(before.reshape(-1, slots // ranks), after.reshape(-1, slots // ranks), strict=True):
        assert int((was == now).sum()) == sum(min((was == e).sum(), (now == e).sum()) for e in set(was.tolist()))
    assert imbalance(later, made, ranks) <= imbalance(later, old, ranks) + 1e-9


def test_a_drift_moves_few_and_a_first_map_as_many_as_it_takes() -> None:
    """What vLLM begins with knows no load: its spare slots hold the first experts."""
    rng = np.random.default_rng(5)
    weight = torch.tensor(np.stack([rng.permutation(1e6 / np.arange(1, 129)) for _ in range(4)])).int()
    first = torch.tensor([*range(128), *range(16)]).repeat(4, 1)
    made = EplbPolicy.rebalance_experts(weight, 144, 1, 1, 8, first)
    assert imbalance(weight, first, 8) > 1.5 > 1.1 > imbalance(weight, made, 8)
    later = (weight * torch.tensor(np.exp(rng.normal(0.0, 0.2, weight.shape)))).int()
    again = EplbPolicy.rebalance_experts(later, 144, 1, 1, 8, made)
    assert 0 < int((again != made).sum()) <= 0.15 * made.numel()
    assert imbalance(later, again, 8) < imbalance(later, made, 8)


def test_nothing_counted_moves_nothing() -> None:
    """As in the profile run, and after an idle window."""
    old = torch.tensor([[0, 1, 2, 3, 0, 1]])
    assert torch.equal(EplbPolicy.rebalance_experts(torch.zeros(1, 4), 6, 1, 1, 3, old), old)


def test_a_map_in_force_of_another_shape_is_answered_anew() -> None:
    """Elastic scale-up pads it with -1; scale-down hands the wider one."""
    weight = torch.tensor([[9, 1, 1, 1]])
    grown = EplbPolicy.rebalance_experts(weight, 6, 1, 1, 3, torch.tensor([[0, 1, 2, 3, -1, -1]]))
    shrunk = EplbPolicy.rebalance_experts(weight, 4, 1, 1, 2, torch.tensor([[0, 1, 2, 3, 0, 0]]))
    assert set(grown[0].tolist()) == set(shrunk[0].tolist()) == {0, 1, 2, 3}
    assert grown.shape == (1, 6) and shrunk.shape == (1, 4)


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(BadPlan, match="do not divide over 3 ranks"):
        EplbPolicy.rebalance_experts(torch.ones(1, 8), 10, 1, 1, 3)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5])
@pytest.mark.parametrize(("experts", "ranks", "spare", "nodes", "groups"), [(128, 8, 16, 1, 1), (256, 32, 64, 4, 8)])
def test_it_is_no_worse_than_the_default_policy(vllm_eplb, experts, ranks, spare, nodes, groups, exponent) -> None:
    rng = np.random.default_rng(3)
    shares = 1.0 / np.arange(1, experts + 1) ** exponent
    weight = torch.tensor(np.stack([rng.permutation(shares) for _ in range(6)]) * 1e6).int()
    call = (weight, experts + spare, groups, nodes, ranks)
    theirs = vllm_eplb.policy.DefaultEplbPolicy.rebalance_experts(*call)
    ours = EplbPolicy.rebalance_experts(*call)
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    assert imbalance(weight, ours, ranks) <= imbalance(weight, theirs, ranks) + FOR_NODES


FOR_NODES = 0.003  # given up for fewer tokens across nodes (`balance.FOR_NODES`), and rounding


def test_vllms_own_maps_and_transfers_follow_from_the_answer(vllm_eplb) -> None:
    """Its tables and its choice of who sends what, for every rank of 4, as after `rearrange`."""
    weight = torch.tensor(np.random.default_rng(0).zipf(1.5, (3, 16)).clip(max=10_000), dtype=torch.int32)
    first = vllm_eplb.state.EplbState.build_initial_global_physical_to_logical_map(16, 4)
    old = torch.tensor(first).repeat(3, 1)
    made = EplbPolicy.rebalance_experts(weight, 20, 1, 1, 4, old)
    assert not torch.equal(made, old)
    slots_of, copies = vllm_eplb.state.compute_logical_maps(made, 16)
    assert int(copies.min()) >= 1 and torch.equal(copies.sum(1), torch.full((3,), 20))
    assert all(made[layer, slot] == e for layer in range(3) for e in range(16) for slot in slots_of[layer, e][:1])
    for layer in range(3):
        weights = {rank: [old[layer, rank * 5 : rank * 5 + 5, None].float().clone()] for rank in range(4)}
        sent, received = [], []
        for rank in range(4):
            communicator = RecordingCommunicator(rank, sent, received)
            buffers = [torch.full((5, 1), -1.0)]
            metadata = vllm_eplb.execute.move_to_buffer(
                num_local_experts=5,
                old_indices=old[layer].numpy(),
                new_indices=made[layer].numpy(),
                expert_weights=weights[rank],
                expert_weights_buffers=buffers,
                stream=None,
                ep_rank=rank,
                communicator=communicator,
            )
            stays = old[layer, rank * 5 : rank * 5 + 5] == made[layer, rank * 5 : rank * 5 + 5]
            assert metadata.is_unchanged.tolist() == stays.tolist()
        assert sorted(sent) == sorted(received)
        ours = Placement(made[layer].numpy().reshape(1, 4, 5), 16)
        assert len(sent) <= ours.moved_from(Placement(old[layer].numpy().reshape(1, 4, 5), 16)).sum()


class RecordingCommunicator:
    """Stands for vLLM's EplbCommunicator: notes (expert, from, to)."""

    def __init__(self, rank: int, sent: list, received: list) -> None:
        self.rank, self.sent, self.received = rank, sent, received

    def set_transfer_context(self, *_: object) -> None: ...

    def add_send(self, tensors: list[torch.Tensor], dst_rank: int, expert_id: int) -> None:
        assert tensors[0].item() == expert_id
        self.sent.append((expert_id, self.rank, dst_rank))

    def add_recv(self, tensors: list[torch.Tensor], src_rank: int, expert_id: int) -> None:
        self.received.append((expert_id, src_rank, self.rank))

    def execute(self) -> None: ...


def test_the_interface_is_the_one_that_vllm_calls(vllm_eplb) -> None:
    theirs = inspect.signature(vllm_eplb.policy.AbstractEplbPolicy.rebalance_experts)
    ours = inspect.signature(EplbPolicy.rebalance_experts)
    assert list(ours.parameters) == list(theirs.parameters)
    assert vllm_eplb.policy.AbstractEplbPolicy.__abstractmethods__ == {"rebalance_experts"}


def test_installed_it_is_what_the_configuration_calls_default(vllm_eplb, monkeypatch) -> None:
    from vllm.config.parallel import EPLBConfig

    monkeypatch.setattr(vllm_eplb.policy, "EPLB_POLICIES", dict(vllm_eplb.policy.EPLB_POLICIES))
    install(vllm_eplb.policy)
    install(vllm_eplb.policy)
    assert vllm_eplb.policy.EPLB_POLICIES[EPLBConfig().policy] is EplbPolicy
    assert issubclass(EplbPolicy, vllm_eplb.policy.AbstractEplbPolicy)


def test_another_vllm_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"written for vLLM 0\.32\.0.*Install 0\.32\.0"):
        install(types.ModuleType("vllm.distributed.eplb.policy"))


def test_importing_it_imports_neither_vllm_nor_torch() -> None:
    import subprocess
    import sys

    code = "import sys, experts.eplb_policy; print(sorted({'vllm', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_after_a_reload_the_maps_say_where_vllm_loads_experts(vllm_eplb) -> None:
    """A model's experts have moved since they were loaded; a draft model's too, and it is not reloaded."""
    layers, experts, spare = 3, 8, 4
    moe, draft = (torch.nn.Module() for _ in range(2))
    for model in (moe, draft):
        model.num_routed_experts, model.num_redundant_experts, model.num_moe_layers = experts, spare, layers
    whole = torch.nn.Sequential(moe)  # as a vision model holds its language model
    moved = torch.stack([torch.randperm(experts + spare) % experts for _ in range(layers)])

    def state_of(model: torch.nn.Module) -> types.SimpleNamespace:
        slots_of, copies = vllm_eplb.state.compute_logical_maps(moved, experts)
        wide = torch.full((layers, experts, 6), -1)  # vLLM has room for more copies than there are
        wide[..., : slots_of.shape[-1]] = slots_of
        return types.SimpleNamespace(
            model=model,
            physical_to_logical_map=moved.clone(),
            physical_to_logical_map_buffer=moved.clone(),
            logical_to_physical_map=wide,
            logical_replica_count=copies,
        )

    states = {"draft": state_of(draft), "main": state_of(moe)}
    _place_experts_as_loaded(types.SimpleNamespace(model_states=states), whole)

    first = vllm_eplb.state.EplbState.build_initial_global_physical_to_logical_map(experts, spare)
    main = states["main"]
    assert main.physical_to_logical_map.tolist() == [first] * layers
    assert main.logical_replica_count.tolist() == [[2] * spare + [1] * (experts - spare)] * layers
    assert main.logical_to_physical_map[0, :, :2].tolist() == [
        [expert, experts + expert if expert < spare else -1] for expert in range(experts)
    ]
    assert torch.equal(states["draft"].physical_to_logical_map, moved)
