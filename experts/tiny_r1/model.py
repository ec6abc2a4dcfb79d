"""The training-time model: Qwen3MoE's arithmetic, written for speed at this size.

Every expert runs on every token and the router's weights, zero for all but the chosen two, select: two plain matrix
products per layer instead of a gather per expert. At 128 x 128 experts that beats sparse dispatch on a GPU and gives
the same numbers. Parameters keep the shapes that transformers gives them, so that export is a renaming.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from experts.tiny_r1.tokenizer import VOCAB_SIZE


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of the model; 1.84 M parameters as they stand."""

    vocab_size: int = VOCAB_SIZE
    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 32
    num_experts: int = 8
    experts_per_token: int = 2
    expert_width: int = 128
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-6
    max_positions: int = 4096

    def as_dict(self) -> dict[str, int | float]:
        return asdict(self)


class Output(NamedTuple):
    """What a forward pass gives; B rows of L tokens, E experts."""

    logits: Tensor
    """[B, L, vocabulary]"""
    router_probs: Tensor
    """[layers, B, L, E]: the router's softmax before the top-k."""
    chosen: Tensor
    """[layers, B, L, E], bool: the experts that each token went to."""


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class Rotation(NamedTuple):
    """Cosine and sine of the rotary embedding, each [L, head_dim]."""

    cos: Tensor
    sin: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """Rotate [B, heads, L, head_dim] in the half-split layout of Llama and Qwen."""
        first, second = x.chunk(2, dim=-1)
        rotated = torch.cat((-second, first), dim=-1)
        return (x * self.cos + rotated * self.sin).to(x.dtype)


def rotary(length: int, head_dim: int, theta: float, device: torch.device) -> Rotation:
    exponents = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim
    positions = torch.arange(length, device=device, dtype=torch.float32)
    angles = torch.outer(positions, 1.0 / theta**exponents)
    angles = torch.cat((angles, angles), dim=-1)
    return Rotation(angles.cos(), angles.sin())


class Attention(nn.Module):
    """Grouped-query attention with Qwen3's norms on queries and keys."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = shape.num_heads, shape.num_kv_heads, shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, shape.num_heads * shape.head_dim, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, shape.num_kv_heads * shape.head_dim, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, shape.num_kv_heads * shape.head_dim, bias=False)
        self.o_proj = nn.Linear(shape.num_heads * shape.head_dim, shape.hidden_size, bias=False)
        self.q_norm = RMSNorm(shape.head_dim, shape.rms_norm_eps)
        self.k_norm = RMSNorm(shape.head_dim, shape.rms_norm_eps)
        self.input_quantizer: nn.Module = nn.Identity()  # set by quantization_aware

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        rows, length, _ = x.shape
        x = self.input_quantizer(x)
        q = self.q_norm(self.q_proj(x).view(rows, length, self.num_heads, self.head_dim)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x).view(rows, length, self.num_kv_heads, self.head_dim)).transpose(1, 2)
        v = self.v_proj(x).view(rows, length, self.num_kv_heads, self.head_dim).transpose(1, 2)
        queries_per_key = self.num_heads // self.num_kv_heads
        q, k = rotation.apply(q).to(v.dtype), rotation.apply(k).to(v.dtype)
        k, v = k.repeat_interleave(queries_per_key, dim=1), v.repeat_interleave(queries_per_key, dim=1)
        # Rows are padded on the right only, so the causal mask alone keeps padding out of every real token.
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.o_proj(self.input_quantizer(mixed.transpose(1, 2).reshape(rows, length, -1)))
        return out


class MixtureOfExperts(nn.Module):
    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        experts, width, hidden = shape.num_experts, shape.expert_width, shape.hidden_size
        self.num_experts, self.experts_per_token, self.width = experts, shape.experts_per_token, width
        self.gate = nn.Linear(hidden, experts, bias=False)
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, width))
        self.input_quantizer: nn.Module = nn.Identity()  # set by quantization_aware

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, L, hidden] -> the experts' mix [B, L, hidden], router probabilities and choices [B, L, E]."""
        # The router stays in float32 under autocast: a choice that flips between training and serving is an error.
        with torch.autocast(x.device.type, enabled=False):
            probs = functional.linear(x.float(), self.gate.weight).softmax(dim=-1)
        top = probs.topk(self.experts_per_token, dim=-1)
        share = top.values / top.values.sum(dim=-1, keepdim=True)
        weights = torch.zeros_like(probs).scatter(-1, top.indices, share)
        both = functional.linear(self.input_quantizer(x), self.gate_up_proj.flatten(0, 1))
        gate, up = both.view(*both.shape[:-1], self.num_experts, 2, self.width).unbind(dim=-2)
        inner = self.input_quantizer(functional.silu(gate) * up) * weights.to(gate.dtype).unsqueeze(-1)
        down = self.down_proj.permute(1, 0, 2).flatten(1)
        return functional.linear(inner.flatten(-2), down), probs, weights > 0


class Layer(nn.Module):
    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.mlp = MixtureOfExperts(shape)

    def forward(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        x = x + self.self_attn(self.input_layernorm(x), rotation)
        mixed, probs, chosen = self.mlp(self.post_attention_layernorm(x))
        return x + mixed, probs, chosen


class TinyR1(nn.Module):
    """Token ids [B, L] -> Output."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_layers))
        self.norm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.lm_head = nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)
        self._initialise()

    def _initialise(self) -> None:
        """Unit-variance inside, small at the ends; outputs into the residual stream shrink with depth (GPT-2)."""
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue
            small = any(part in name for part in ("embed_tokens", "lm_head", "mlp.gate."))
            std = 0.02 if small else parameter.shape[-1] ** -0.5
            if name.endswith(("o_proj.weight", "down_proj")):
                std *= (2 * self.shape.num_layers) ** -0.5
            nn.init.normal_(parameter, std=std)

    def forward(self, token_ids: Tensor) -> Output:
        rotation = rotary(token_ids.shape[1], self.shape.head_dim, self.shape.rope_theta, token_ids.device)
        x = self.embed_tokens(token_ids)
        all_probs: list[Tensor] = []
        all_chosen: list[Tensor] = []
        for layer in self.layers:
            x, probs, chosen = layer(x, rotation)
            all_probs.append(probs)
            all_chosen.append(chosen)
        return Output(self.lm_head(self.norm(x)), torch.stack(all_probs), torch.stack(all_chosen))


def expert_shares(chosen: Tensor, real: Tensor) -> Tensor:
    """Each expert's share of a layer's assignments: [layers, B, L, E] over real tokens [B, L] -> [layers, E]."""
    counts = (chosen & real[None, :, :, None]).sum(dim=(1, 2)).float()
    return counts / counts.sum(dim=-1, keepdim=True)


def load_balance_loss(output: Output, real: Tensor) -> Tensor:
    """Switch Transformer's auxiliary loss (Fedus et al. 2021, eq. 4), mean over layers: 1 when all share alike."""
    mean_probs = (output.router_probs * real[None, :, :, None]).sum(dim=(1, 2)) / real.sum()
    shares = expert_shares(output.chosen, real)
    return shares.shape[-1] * (shares * mean_probs).sum(dim=-1).mean()


def save_weights(model: TinyR1, path: Path) -> None:
    """A torch file that `load_weights` reads: shape and weights, no code."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    torch.save({"shape": model.shape.as_dict(), "weights": model.state_dict()}, scratch)
    scratch.replace(path)


def load_weights(path: Path) -> TinyR1:
    stored = torch.load(path, map_location="cpu", weights_only=True)
    model = TinyR1(ModelShape(**stored["shape"]))
    model.load_state_dict(stored["weights"])
    return model
