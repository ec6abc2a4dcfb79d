"""Which prompts training never sees: one in 64, decided by a hash of the prompt's canonical text.

The canonical text of an arithmetic prompt is the calculation itself with its operands sorted where order does not
matter. A held-out calculation is therefore unseen in every wording, spelling and order: `228+130`, `What is 130 plus
228?` and a word problem over the same numbers stand or fall together. It may still occur as a step of a longer one.
"""

import hashlib
import re
from typing import Final

HELD_OUT_OF: Final = 64
"""One canonical prompt in this many is held out."""


def canonical_sum(numbers: list[int]) -> str:
    return "+".join(str(number) for number in sorted(numbers))


def canonical_chain(numbers: list[int], operators: str) -> str:
    """`12+30-5`; a pure sum has its numbers sorted."""
    if set(operators) == {"+"}:
        return canonical_sum(numbers)
    return str(numbers[0]) + "".join(
        f"{operator}{number}" for operator, number in zip(operators, numbers[1:], strict=True)
    )


def canonical_comparison(numbers: list[int], *, largest: bool) -> str:
    return f"{'max' if largest else 'min'}({','.join(str(number) for number in sorted(numbers))})"


def canonical_text(text: str) -> str:
    """Prose: case, spacing and punctuation at the ends do not matter."""
    return re.sub(r"\s+", " ", text.casefold()).strip(" .,!?;:")


def is_held_out(canonical: str) -> bool:
    digest = hashlib.blake2b(canonical.encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % HELD_OUT_OF == 0
