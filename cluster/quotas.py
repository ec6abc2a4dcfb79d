"""What each tenant may still have: requests and tokens per minute, concurrency. The router's, so it holds cluster-wide.

Pure: no clock (times are seconds on the caller's clock), no I/O. Limits come with each ticket, so the router reads no
file. A limit per minute is a token bucket that holds a minute's worth: a tenant that was quiet may use it at once.
Prompts are charged when a ticket is admitted, output when it is released; so a bucket may fall below zero by what was
running, and nothing is admitted until it has filled up again.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cluster.outcomes import Ending
from replicas.messages import Allowance, Denial, Quota, Released, Tenant, Ticket

ROUNDING = 1e-6  # requests or tokens: what a level, filled up in many small steps, may be off by


@dataclass
class _Bucket:
    """A limit per minute."""

    per_min: int
    level: float
    at: float  # when the level was that

    def fill(self, now: float) -> None:
        self.level = min(self.level + max(now - self.at, 0.0) * self.per_min / 60, self.per_min)
        self.at = max(now, self.at)

    def wait_s(self, amount: float) -> float:
        """Seconds until the level, as it was filled last, allows this."""
        missing = amount - self.level
        return missing * 60 / self.per_min if missing > ROUNDING else 0.0

    def allowance(self) -> Allowance:
        return Allowance(
            limit=self.per_min, remaining=max(math.floor(self.level), 0), reset_s=self.wait_s(self.per_min)
        )


@dataclass
class _Account:
    """A tenant, what it has left, and what it has had."""

    terms: Tenant
    requests_left: _Bucket | None = None
    tokens_left: _Bucket | None = None
    open: set[str] = field(default_factory=set)  # request ids
    requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0

    def agree(self, terms: Tenant, now: float) -> None:
        """The latest terms count; what was used up stays used up."""
        self.terms = terms
        self.requests_left = _adjusted(self.requests_left, terms.requests_per_min, now)
        self.tokens_left = _adjusted(self.tokens_left, terms.tokens_per_min, now)

    def charge(self, requests: int, prompt_tokens: int = 0, output_tokens: int = 0) -> None:
        """Negative to give back."""
        self.requests += requests
        self.prompt_tokens += prompt_tokens
        self.output_tokens += output_tokens
        if self.requests_left is not None:
            self.requests_left.level -= requests
        if self.tokens_left is not None:
            self.tokens_left.level -= prompt_tokens + output_tokens

    def quota(self, now: float) -> Quota | None:
        for bucket in (self.requests_left, self.tokens_left):
            if bucket is not None:
                bucket.fill(now)
        if self.requests_left is None and self.tokens_left is None:
            return None
        return Quota(
            requests=self.requests_left.allowance() if self.requests_left else None,
            tokens=self.tokens_left.allowance() if self.tokens_left else None,
        )


def _adjusted(bucket: _Bucket | None, per_min: int | None, now: float) -> _Bucket | None:
    if per_min is None:
        return None
    if bucket is None:
        return _Bucket(per_min, per_min, now)
    bucket.fill(now)
    bucket.per_min, bucket.level = per_min, min(bucket.level, per_min)
    return bucket


class _Open(NamedTuple):
    """A request that waits or runs, and what was charged for it so far."""

    owner: str
    account: _Account
    requests: int = 0
    prompt_tokens: int = 0


class Quotas:
    """All tenants' accounts. An owner is whoever the tickets come from: a gateway's id."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}
        self._open: dict[str, _Open] = {}

    def admit(self, owner: str, ticket: Ticket, now: float) -> Denial | None:
        """Charges and counts a ticket, or says why not. A resumed one was admitted and charged before."""
        if ticket.request_id in self._open:
            return None
        if ticket.resumed:
            self.adopt(owner, ticket, now)
            return None
        account = self._account(ticket.tenant, now)
        account.agree(ticket.tenant, now)
        if denial := _denial(account, ticket, now):
            return denial
        opened = _Open(owner, account, int(ticket.first_of_request), ticket.prompt_tokens)
        account.charge(opened.requests, opened.prompt_tokens)
        self._add(ticket.request_id, opened)
        return None

    def adopt(self, owner: str, ticket: Ticket, now: float) -> None:
        """Counts a ticket that was admitted before: it goes on after a loss, or the router does after its own."""
        self._add(ticket.request_id, _Open(owner, self._account(ticket.tenant, now)))

    def release(self, released: Released) -> None:
        """It neither waits nor runs any more. Saying it again changes nothing."""
        if opened := self._remove(released.request_id):
            opened.account.charge(0, output_tokens=released.output_tokens)

    def give_back(self, request_id: str) -> None:
        """The cluster could not serve it: its tenant pays nothing."""
        if opened := self._remove(request_id):
            opened.account.charge(-opened.requests, -opened.prompt_tokens)

    def forget_owner(self, owner: str) -> None:
        """A gateway is gone: so are its requests."""
        for request_id in [r for r, opened in self._open.items() if opened.owner == owner]:
            self._remove(request_id)

    def quota(self, request_id: str, now: float) -> Quota | None:
        """What the tenant of an open request has left; None: it has no limits per minute."""
        opened = self._open.get(request_id)
        return opened.account.quota(now) if opened else None

    def status(self) -> list[dict[str, Any]]:
        """What each tenant has open, and has had since this router started."""
        return [
            {
                "name": name,
                "open": len(account.open),
                "requests": account.requests,
                "prompt_tokens": account.prompt_tokens,
                "output_tokens": account.output_tokens,
            }
            for name, account in sorted(self._accounts.items())
        ]

    def _account(self, terms: Tenant, now: float) -> _Account:
        if terms.name not in self._accounts:
            self._accounts[terms.name] = account = _Account(terms)
            account.agree(terms, now)
        return self._accounts[terms.name]

    def _add(self, request_id: str, opened: _Open) -> None:
        self._remove(request_id)
        self._open[request_id] = opened
        opened.account.open.add(request_id)

    def _remove(self, request_id: str) -> _Open | None:
        if opened := self._open.pop(request_id, None):
            opened.account.open.discard(request_id)
        return opened


def _denial(account: _Account, ticket: Ticket, now: float) -> Denial | None:
    """Why this ticket may not be admitted now, from limits that agree with it and are filled up to now."""
    name, terms = ticket.tenant.name, account.terms
    wait_s, why = 0.0, ""
    if terms.concurrency is not None and len(account.open) >= terms.concurrency:
        why = f"has {len(account.open)} requests open, of {terms.concurrency} that it may have at once"
    # Further samples belong to a request that was let in: refusing them would waste what the first has cost.
    elif ticket.first_of_request:
        wait_s, why = max(_waits(account, ticket))
    if not why:
        return None
    again = f"in {math.ceil(wait_s)} s" if wait_s else "when one of them has ended"
    return Denial(
        request_id=ticket.request_id,
        ending=Ending.RATE_LIMITED.name,
        retry_after_s=wait_s,
        detail=f"Tenant {name} {why}; try again {again}.",
        quota=account.quota(now),
    )


def _waits(account: _Account, ticket: Ticket) -> Iterator[tuple[float, str]]:
    """Seconds until each limit per minute allows this ticket, and the reason; nothing at all allows it at once."""
    yield 0.0, ""
    if (bucket := account.requests_left) and (wait_s := bucket.wait_s(1)):
        yield wait_s, f"has used up its {bucket.per_min} requests per minute"
    # A prompt beyond a minute's worth waits for a full bucket: else it would wait for ever.
    if (bucket := account.tokens_left) and (wait_s := bucket.wait_s(min(ticket.prompt_tokens, bucket.per_min))):
        left = max(math.floor(bucket.level), 0)
        yield (
            wait_s,
            f"has {left} of its {bucket.per_min} tokens per minute left; the prompt has {ticket.prompt_tokens}",
        )
