"""How long an answer will be: a running mean per tenant and prompt length. Pure."""

import math

PRIOR_TOKENS = 256.0  # before anything is known
PRIOR_WEIGHT = 4.0  # answers that the prior counts as
HORIZON = 200.0  # answers that the mean looks back on


class OutputLength:
    """Means of output tokens by (tenant, prompt length in powers of two)."""

    def __init__(self) -> None:
        self._means: dict[tuple[str, int], tuple[float, float]] = {}  # mean, weight

    def expected(self, tenant: str, prompt_tokens: int, max_tokens: int) -> int:
        """Output tokens that such a request will have, no more than it may."""
        mean, _ = self._means.get(self._key(tenant, prompt_tokens), (PRIOR_TOKENS, 0.0))
        return min(max_tokens, math.ceil(mean))

    def learn(self, tenant: str, prompt_tokens: int, output_tokens: int) -> None:
        """An answer has ended by itself."""
        key = self._key(tenant, prompt_tokens)
        mean, weight = self._means.get(key, (PRIOR_TOKENS, PRIOR_WEIGHT))
        weight = min(weight + 1.0, HORIZON)
        self._means[key] = (mean + (output_tokens - mean) / weight, weight)

    @staticmethod
    def _key(tenant: str, prompt_tokens: int) -> tuple[str, int]:
        return tenant, prompt_tokens.bit_length()
