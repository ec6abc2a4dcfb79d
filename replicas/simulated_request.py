"""A request in the simulated engine: what it asks for, and how far it is."""

from collections.abc import Sequence


class SimulatedRequest:
    """A request, whose number of output tokens is known here and to nobody else."""

    __slots__ = (
        "blocks",
        "cached",
        "came",
        "computed",
        "finish_at",
        "generated",
        "length_offset",
        "named",
        "output_tokens",
        "prompt_tokens",
        "request_id",
        "seen_blocks",
        "target",
    )

    def __init__(self, request_id: str, prompt_tokens: int, output_tokens: int, blocks: Sequence[int] = ()) -> None:
        self.request_id = request_id
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.blocks = blocks  # hashes of prompt and output, as far as anyone can share them
        self.generated = 0  # output tokens sampled; while it decodes, brought up to date when it stops
        self.came = 0.0  # when it was added
        self.cached = 0  # prompt tokens found in the prefix cache when it was admitted first
        # The engine's: of a prefill
        self.target = 0  # tokens to compute before it samples
        self.computed = 0
        self.named: list[int] = []  # hashes of blocks that it holds
        self.seen_blocks = 0  # of `blocks`, how many were named or found named already
        # of decoding
        self.length_offset = 0  # length at the next step - steps of the engine so far
        self.finish_at = 0  # its last token comes with this step of the engine; 0: it is not decoding
