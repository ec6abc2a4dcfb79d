"""The noise of a seeded sample on a CPU as a function of seed and position, so that another core can go on with it."""

from typing import Any


def positioned_noise(seed: int, output_token_ids: list[int]) -> Any:
    """A seeded request's generator, standing where the noise of its next token begins.

    vLLM's CPU sampler draws one number a token from it (v1/sample/ops/topk_topp_sampler.py, `forward_cpu`), so a
    resumed sample goes on with the noise that it would have had. And it draws one after each chunk of a long prompt,
    which it then takes back by an offset that CPU generators do not have: without this, a seeded request with a prompt
    longer than max_num_batched_tokens ends the engine by a RuntimeError (seen in 0.32.0).
    """
    import torch

    class PositionedNoise(torch.Generator):
        def get_offset(self) -> int:
            return 0

        def set_offset(self, offset: int) -> torch.Generator:
            self.manual_seed(seed)
            torch.randint(0, 2**31, (len(output_token_ids),), generator=self)
            return self

    noise = PositionedNoise()
    noise.set_offset(0)
    return noise
