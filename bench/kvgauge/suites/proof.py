"""What a decode backend must prove before its time counts, and again after it was timed.

A backend may answer rightly when it is checked and cheat when it is timed: it may fall back on another
kernel, leave out tokens, remember an answer or return before it is done. Each is asked for here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from kvgauge.measure.validity import (
    Fault,
    early_fault,
    kernel_fault,
    observe_ops,
    output_fault,
    relative_error,
    tokens_fault,
)
from kvgauge_kernels import AttentionBackend, KVView, oracle_decode

# A step that returns early is waited for as long as it took, and at least so long.
_LEAST_WAIT_S = 0.02
# Along a token's key this much, its weight in the softmax stands out among many thousands.
_TOWARDS = 4.0


@dataclass(frozen=True, slots=True)
class Work:
    """One input set of a cell: for each timed layer a query `[batch, q_heads, k_dim]` and its cache."""

    backend: AttentionBackend
    layers: tuple[tuple[torch.Tensor, KVView], ...]

    def step(self) -> list[torch.Tensor]:
        """One decode step's attention: each layer's output `[batch, q_heads, v_dim]`."""
        return [self.backend.decode(q, view) for q, view in self.layers]


@dataclass(frozen=True, slots=True)
class Proof:
    """What was seen of a step: its kernel, its error against the oracle, the first fault."""

    kernel: str | None
    error: float
    fault: Fault | None
    expected: torch.Tensor
    """What the oracle says of the first layer, float64 `[batch, q_heads, v_dim]`."""


def prove(work: Work) -> Proof:
    """Look at every layer of one input set; the first fault is the one that is said."""
    seen = observe_ops(work.step)
    kernel = ", ".join(sorted(seen & set(work.backend.kernel_ops))) or None
    errors, expected = zip(*(_error(work.backend, q, view) for q, view in work.layers), strict=True)
    fault = (
        kernel_fault(seen, work.backend.kernel_ops, work.backend.forbidden_ops)
        or tokens_fault(unread_tokens(work))
        or output_fault(max(errors), work.layers[0][0].dtype)
    )
    return Proof(kernel, max(errors), fault, expected[0])


def prove_again(
    work: Work,
    step: Callable[[], list[torch.Tensor]],
    expected: torch.Tensor,
    step_s: float,
) -> Fault | None:
    """After `step` was timed: no early return, every token still read, the output still right.

    `step` is the work's own or a graph of it; `step_s` is what it took; `expected` the proof's.
    """
    outputs = step()
    first = [output.clone() for output in outputs]
    time.sleep(max(step_s, _LEAST_WAIT_S))
    late = max(relative_error(a, b.double()) for a, b in zip(first, outputs, strict=True))
    error = relative_error(first[0], expected)
    return (
        early_fault(late)
        or tokens_fault(unread_tokens(work))
        or output_fault(error, first[0].dtype)
    )


def unread_tokens(work: Work) -> tuple[int, ...]:
    """The tokens, of the first, a middle and the last, that do not change the first layer's output.

    The query looks along the token's key; the token's value is then turned to its negative, and back.
    """
    q, view = work.layers[0]
    unread = []
    for token in sorted({0, view.tokens // 2, view.tokens - 1}):
        towards = _query_towards(q, view, token)
        before = work.backend.decode(towards, view).clone()
        row = view.v[:, :, token]
        row.neg_()
        after = work.backend.decode(towards, view)
        row.neg_()
        if bool((before == after).all(dim=-1).any()):
            unread.append(token)
    return tuple(unread)


def _error(backend: AttentionBackend, q: torch.Tensor, view: KVView) -> tuple[float, torch.Tensor]:
    """The larger error of two queries, a random one and one that looks for the last token.

    Among many tokens the last few hardly show in a random query's output; a query along the last
    token's key makes an output that is wrong all over where that token was not read. The oracle
    answers both at once; what it says of the random one is returned beside the error.
    """
    queries = (q, _query_towards(q, view, view.tokens - 1))
    batch, group = view.batch, view.group(q)
    by_kv_head = [each.reshape(batch, view.kv_heads, group, -1) for each in queries]
    both = oracle_decode(torch.cat(by_kv_head, dim=2).flatten(1, 2), view)
    heads = both.reshape(batch, view.kv_heads, 2 * group, -1)
    expected = [half.flatten(1, 2) for half in (heads[:, :, :group], heads[:, :, group:])]
    errors = [
        relative_error(backend.decode(query, view), right)
        for query, right in zip(queries, expected, strict=True)
    ]
    return max(errors), expected[0]


def _query_towards(q: torch.Tensor, view: KVView, token: int) -> torch.Tensor:
    key = view.k[:, :, token, :].float()
    if view.k_scale is not None:
        key = key * view.k_scale[:, :, token].float().unsqueeze(-1)
    return (_TOWARDS * key).repeat_interleave(q.shape[1] // view.kv_heads, dim=1).to(q.dtype)
