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


# What the oracle says of a layer, float64 `[batch, q_heads, v_dim]`: of the work's own query, and of one
# along the last token's key. Among many tokens the last few hardly show in a random query's output; the
# other output is wrong all over where that token was not read.
Expected = tuple[tuple[torch.Tensor, torch.Tensor], ...]


@dataclass(frozen=True, slots=True)
class Proof:
    """What was seen of a step: its kernel, its error against the oracle, the first fault."""

    kernel: str | None
    error: float
    fault: Fault | None


def expect(work: Work) -> Expected:
    """Ask the oracle, of each layer once for both queries: the same for every backend."""
    return tuple(_expect(q, view) for q, view in work.layers)


def prove(work: Work, expected: Expected) -> Proof:
    """Look at every layer of one input set; the first fault is the one that is said."""
    outputs: list[torch.Tensor] = []
    seen = observe_ops(lambda: outputs.extend(output.clone() for output in work.step()))
    errors = []
    for (q, view), output, (right, right_of_last) in zip(
        work.layers, outputs, expected, strict=True
    ):
        of_last = work.backend.decode(_query_towards(q, view, (view.tokens - 1,)), view)
        errors += [relative_error(output, right), relative_error(of_last, right_of_last)]
    wrong = output_fault(max(errors), work.layers[0][0].dtype)
    fault = (
        kernel_fault(seen, work.backend.kernel_ops, work.backend.forbidden_ops)
        # Tokens that were not read explain a wrong output; a right one asks for them after the timing.
        or (tokens_fault(unread_tokens(work)) if wrong else None)
        or wrong
    )
    kernel = ", ".join(sorted(seen & set(work.backend.kernel_ops))) or None
    return Proof(kernel, max(errors), fault)


def prove_again(
    work: Work,
    step: Callable[[], list[torch.Tensor]],
    expected: Expected,
    step_s: float,
) -> Fault | None:
    """After `step` was timed: the same kernel, no early return, the output of data that changed meanwhile.

    `step` is the work's own or a graph of it; `step_s` is what it took. All values are turned to their
    negatives for it, and the output with them: an answer that was kept is then a wrong one.
    """
    values = [view.v for _q, view in work.layers]
    for value in values:
        value.neg_()
    outputs: list[torch.Tensor] = []
    seen = observe_ops(lambda: outputs.extend(step()))
    first = [output.clone() for output in outputs]
    time.sleep(max(step_s, _LEAST_WAIT_S))
    late = max(relative_error(a, b.double()) for a, b in zip(first, outputs, strict=True))
    error = max(relative_error(a, -right) for a, (right, _) in zip(first, expected, strict=True))
    for value in values:
        value.neg_()
    if step != work.step:  # a graph's replay dispatches no operator
        seen = observe_ops(work.step)
    return (
        early_fault(late)
        or kernel_fault(seen, work.backend.kernel_ops, work.backend.forbidden_ops)
        or tokens_fault(unread_tokens(work))
        or output_fault(error, first[0].dtype)
    )


def unread_tokens(work: Work) -> tuple[int, ...]:
    """The tokens, of the last, the first and a middle one, that do not change the first layer's output.

    Query heads take turns in looking along the key of one of them; the value of one after the other is
    turned to its negative, and back. With under three query heads fewer tokens are asked for.
    """
    q, view = work.layers[0]
    tokens = tuple(dict.fromkeys((view.tokens - 1, 0, view.tokens // 2)))[: q.shape[1]]
    query = _query_towards(q, view, tokens)
    before = work.backend.decode(query, view).clone()
    unread = []
    for turn, token in enumerate(tokens):
        row = view.v[:, :, token]
        row.neg_()
        after = work.backend.decode(query, view)
        row.neg_()
        looking = slice(turn, None, len(tokens))
        if bool((before == after)[:, looking].all(dim=-1).any()):
            unread.append(token)
    return tuple(sorted(unread))


def _expect(q: torch.Tensor, view: KVView) -> tuple[torch.Tensor, torch.Tensor]:
    batch, group = view.batch, view.group(q)
    queries = (q, _query_towards(q, view, (view.tokens - 1,)))
    by_kv_head = [each.reshape(batch, view.kv_heads, group, -1) for each in queries]
    both = oracle_decode(torch.cat(by_kv_head, dim=2).flatten(1, 2), view)
    heads = both.reshape(batch, view.kv_heads, 2 * group, -1)
    return heads[:, :, :group].flatten(1, 2), heads[:, :, group:].flatten(1, 2)


def _query_towards(q: torch.Tensor, view: KVView, tokens: tuple[int, ...]) -> torch.Tensor:
    """A query like `q` whose head h looks along the key of `tokens[h % len(tokens)]`."""
    keys = []
    for head in range(q.shape[1]):
        kv_head, token = head // view.group(q), tokens[head % len(tokens)]
        key = view.k[:, kv_head, token].float()
        if view.k_scale is not None:
            key = key * view.k_scale[:, kv_head, token].float().unsqueeze(-1)
        keys.append(key)
    return (_TOWARDS * torch.stack(keys, dim=1)).to(q.dtype)
