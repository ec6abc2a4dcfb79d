"""What clients got while a version was rolled out, judged against each version's own answers. Pure.

An answer says its version in a header. It is right if it is that version's answer to the last character; if it is not,
it is truncated, or neither version's whole answer (`mixed`). What a version answers is known where it was asked
undisturbed, more than once, and said the same each time; other answers are counted as uncompared, never as right.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from ops.soak.answers import Answer, Choice, difference

References = Mapping[str, Mapping[str, Answer]]
"""Version -> name of an ask -> the right answer."""


class Verdict(StrEnum):
    RIGHT = "right"
    FAILED = "failed"  # an error, a refusal, or no version told
    TRUNCATED = "truncated"  # the stream was cut, or the answer is the beginning of the right one
    MIXED = "mixed"  # whole, but not the answer of the version that it says it is of
    UNCOMPARED = "uncompared"  # whole; what that version answers is not known


@dataclass
class Exchange:
    """One request and what came of it. Seconds of one monotonic clock."""

    ask: str  # name of what was asked
    began_s: float
    version: str = ""  # by the answer's header
    restarted: str = ""  # the version on which it was begun before, by the answer's header
    status: int = 0  # HTTP; 0: no answer
    first_s: float | None = None  # its first event, or its whole body
    longest_gap_s: float = 0.0  # between two events of its stream
    answer: Answer | None = None  # None: it did not come whole
    cut: bool = False  # its body began and had no end
    words: str = ""  # why there is no answer


@dataclass
class Tally:
    """What became of all requests of a time."""

    requests: int = 0
    by_verdict: dict[Verdict, int] = field(default_factory=lambda: dict.fromkeys(Verdict, 0))
    by_version: dict[str, int] = field(default_factory=dict)  # answers, or the beginnings of some
    restarted: int = 0
    longest_gap_s: float = 0.0
    wrong: list[str] = field(default_factory=list)  # a line for each that failed, was truncated or mixed

    def share(self, version: str) -> float:
        """Of the requests that any version began to answer."""
        answered = sum(self.by_version.values())
        return self.by_version.get(version, 0) / answered if answered else 0.0

    def figures(self) -> dict[str, int]:
        found = {str(verdict): count for verdict, count in self.by_verdict.items() if verdict is not Verdict.RIGHT}
        return {"requests": self.requests, **found, "restarted": self.restarted}


def tally(exchanges: Iterable[Exchange], references: References) -> Tally:
    """Of exchanges that have ended; one that runs still is counted as failed."""
    found = Tally()
    for exchange in exchanges:
        verdict, why = judge(exchange, references)
        found.requests += 1
        found.by_verdict[verdict] += 1
        found.longest_gap_s = max(found.longest_gap_s, exchange.longest_gap_s)
        found.restarted += bool(exchange.restarted)
        if exchange.version:
            found.by_version[exchange.version] = found.by_version.get(exchange.version, 0) + 1
        if verdict in (Verdict.FAILED, Verdict.TRUNCATED, Verdict.MIXED):
            found.wrong.append(f"{exchange.ask} ({exchange.version or 'no version'}): {verdict}: {why}")
    return found


def judge(exchange: Exchange, references: References) -> tuple[Verdict, str]:
    """And why, if it is not right."""
    answer = exchange.answer
    if answer is None:
        words = exchange.words or "it had not ended"
        return (Verdict.TRUNCATED, words) if exchange.cut else (Verdict.FAILED, words)
    if not exchange.version:
        return Verdict.FAILED, "the answer does not say its version"
    own = references.get(exchange.version, {}).get(exchange.ask)
    if own is None:
        return Verdict.UNCOMPARED, "its version's answer is not known"
    words = difference(answer, own)
    if not words:
        return Verdict.RIGHT, ""
    others = [name for name, known in references.items() if exchange.ask in known and name != exchange.version]
    if any(not difference(answer, references[name][exchange.ask]) for name in others):
        return Verdict.MIXED, f"it is another version's answer: {words}"
    return (Verdict.TRUNCATED if _is_beginning(answer, own) else Verdict.MIXED), words


def _is_beginning(got: Answer, wanted: Answer) -> bool:
    """Whether each sample is the right one up to somewhere, and one ends before it should."""
    if len(got.choices) != len(wanted.choices):
        return len(got.choices) < len(wanted.choices)
    return got.completion_tokens < wanted.completion_tokens and all(
        _text(wanted_choice).startswith(_text(choice))
        for choice, wanted_choice in zip(got.choices, wanted.choices, strict=True)
    )


def _text(choice: Choice) -> str:
    return choice.reasoning + "\0" * bool(choice.text and choice.reasoning) + choice.text


# -- what is known of a version's answers ------------------------------------------------------------------------------


def agreed(passes: Sequence[Mapping[str, Answer]]) -> dict[str, Answer]:
    """The answers that came alike in every pass: where two tokens are nearly as likely, the batch decides."""
    if not passes:
        return {}
    first, *others = passes
    return {
        name: answer
        for name, answer in first.items()
        if all(name in other and not difference(other[name], answer) for other in others)
    }


# -- a rollout and a way back in time ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class WayBack:
    """How a bad version was taken back."""

    rollback_s: float | None  # from its first token at a client until no replica had it; None: it never gave one
    bad_share: float  # of the answers that were begun during the rollout
    answered: int  # by it
    requests: int


def way_back(exchanges: Iterable[Exchange], bad: str, began_s: float, over_s: float) -> WayBack:
    """`began_s`, `over_s`: the rollout's beginning, and when no replica had that version any more."""
    during = [one for one in exchanges if began_s <= one.began_s < over_s and one.version]
    of_bad = [one for one in during if one.version == bad]
    first_s = min((one.first_s for one in of_bad if one.first_s is not None), default=None)
    return WayBack(
        rollback_s=None if first_s is None else max(over_s - first_s, 0.0),
        bad_share=len(of_bad) / len(during) if during else 0.0,
        answered=len(of_bad),
        requests=len(during),
    )
