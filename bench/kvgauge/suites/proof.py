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
from kvgauge_kernels.stored import numbers_of_k, stored_as

# A step that returns early is waited for as long as it took, within these bounds.
_LEAST_WAIT_S, _MOST_WAIT_S = 0.02, 1.0
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
class Expected:
    """What the oracle says, float64 `[batch, q_heads, v_dim]`.

    A random query averages over so many tokens that one of them, or another scale of the scores, hardly
    shows. A query that looks along the keys of some tokens is all wrong then.
    """

    own: tuple[torch.Tensor, ...]
    """For each layer's own query."""
    looking: dict[int, torch.Tensor]
    """For such a query, by the number of the layer: of each shape the first."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What was seen of a step: its kernel, its error against the oracle, the first fault."""

    kernel: str | None
    error: float
    fault: Fault | None


def expect(work: Work) -> Expected:
    """Ask the oracle, at most once a layer for both queries: the same for every backend."""
    own: list[torch.Tensor] = []
    looking: dict[int, torch.Tensor] = {}
    looked_at = _one_of_each_shape(work)
    for i, (q, view) in enumerate(work.layers):
        if i in looked_at:
            both = _oracle_of(view, q, _query_towards(q, view, _tokens_to_look_at(q, view)))
            own.append(both[0])
            looking[i] = both[1]
        else:
            own.append(oracle_decode(q, view))
    return Expected(tuple(own), looking)


def prove(work: Work, expected: Expected) -> Proof:
    """Look at every layer of one input set; the first fault is the one that is said."""
    outputs: list[torch.Tensor] = []
    seen = observe_ops(lambda: outputs.extend(output.clone() for output in work.step()))
    error = max(relative_error(a, b) for a, b in zip(outputs, expected.own, strict=True))
    wrong = output_fault(error, work.layers[0][0].dtype)
    fault = (
        kernel_fault(seen, work.backend.kernel_ops, work.backend.forbidden_ops)
        # Tokens that were not read explain a wrong output; a right one asks for them after the timing.
        or (tokens_fault(look(work, expected)[0]) if wrong else None)
        or wrong
    )
    kernel = ", ".join(sorted(seen & set(work.backend.kernel_ops))) or None
    return Proof(kernel, error, fault)


def prove_again(
    work: Work,
    step: Callable[[], list[torch.Tensor]],
    expected: Expected,
    step_s: float,
) -> Fault | None:
    """After `step` was timed: the same kernel, no early return, all tokens, the output of data that changed.

    `step` is the work's own or a graph of it; `step_s` is what it took. All values are turned to their
    negatives for it, and the output with them: an answer that was kept is then a wrong one.
    """
    zeros = [_negate_values(q, view) for q, view in work.layers]
    outputs: list[torch.Tensor] = []
    seen = observe_ops(lambda: outputs.extend(step()))
    first = [output.clone() for output in outputs]
    time.sleep(min(max(step_s, _LEAST_WAIT_S), _MOST_WAIT_S))
    late = max(relative_error(a, b.double()) for a, b in zip(first, outputs, strict=True))
    error = max(relative_error(a, -b) for a, b in zip(first, expected.own, strict=True))
    for (q, view), zero in zip(work.layers, zeros, strict=True):
        _turn(view.v)
        _turn(_query_of_values(q, view))
        if view.v_zero is not None and zero is not None:
            view.v_zero.copy_(zero)  # its negative was rounded
    if step != work.step:  # a graph's replay dispatches no operator
        seen = observe_ops(work.step)
    unread, error_of_looks = look(work, expected)
    return (
        early_fault(late)
        or kernel_fault(seen, work.backend.kernel_ops, work.backend.forbidden_ops)
        or tokens_fault(unread)
        or output_fault(max(error, error_of_looks), first[0].dtype)
    )


def look(work: Work, expected: Expected) -> tuple[tuple[int, ...], float]:
    """Which of the last, the first and a middle token are not read, and the error when looking for them.

    Query heads take turns in looking along the key of one of them. Then each token's value is turned to
    another (its negative where codes have signs), and back, in columns of its own: those must change in the
    heads that look along its key. With under three query heads or columns fewer tokens are asked for.
    """
    unread: set[int] = set()
    errors = []
    for layer, right in expected.looking.items():
        q, view = work.layers[layer]
        tokens = _tokens_to_look_at(q, view)
        query = _query_towards(q, view, tokens)
        before = work.backend.decode(query, view).clone()
        errors.append(relative_error(before, right))
        own = [
            row[:, turn :: len(tokens)]
            for turn, token in enumerate(tokens)
            for row in _token_rows(view, "v", token)
        ]
        for row in own:
            _turn(row)
        after = work.backend.decode(query, view)
        for row in own:
            _turn(row)
        for turn, token in enumerate(tokens):
            heads = slice(turn, None, len(tokens))
            if bool(
                (before == after)[:, heads, _columns(view, turn, len(tokens))].all(dim=-1).any()
            ):
                unread.add(token)
    return tuple(sorted(unread)), max(errors)


def _turn(rows: torch.Tensor) -> None:
    """Change every number in place, and back when called again: its sign, or code c to the last but c."""
    if rows.dtype == torch.uint8:
        rows.bitwise_not_()
    elif rows.dtype.is_floating_point and rows.dtype.itemsize == 1:
        rows.view(torch.uint8).bitwise_xor_(0x80)  # torch has no negative of an 8-bit float
    else:
        rows.neg_()


def _token_rows(view: KVView, name: str, token: int) -> list[torch.Tensor]:
    """Of one of the view's tensors, by name, that token of each sequence, `[kv_heads, ...]`; not copies."""
    of, together = view.tensors()[name], view.tokens_to(name)
    if view.block_table is None or view.page_size is None:
        return [of[b, :, token // together] for b in range(view.batch)]
    pages = view.block_table[:, token // view.page_size].tolist()
    return [of[page, :, token % view.page_size // together] for page in pages]


def _side(of_token: torch.Tensor | None) -> torch.Tensor | None:
    """Scales or zeros `[batch, ...]` of a token as those of a row of one token, `[batch, 1, ...]`."""
    return None if of_token is None else of_token[:, None]


def _query_of_values(q: torch.Tensor, view: KVView) -> torch.Tensor:
    """The part of the query that meets V, where V is a part of K (MLA); else none of it."""
    return q[..., : view.v_dim if view.shares_rows else 0]


def _negate_values(q: torch.Tensor, view: KVView) -> torch.Tensor | None:
    """Turn all values to their negatives; the zeros that they had, which `_turn` does not bring back.

    Where they are a part of the keys the query is turned with them, so that scores stay what they are.
    """
    _turn(view.v)
    _turn(_query_of_values(q, view))
    if view.v_zero is None or view.v_scale is None:
        return None
    # Code c has become `last - c`: the negative is that times the scale, from `-zero - last * scale` on.
    before, last = view.v_zero.clone(), 2 ** stored_as(view.format).bits - 1
    view.v_zero.copy_(-(view.v_zero.float() + last * view.v_scale.float()))
    return before


def _columns(view: KVView, turn: int, turns: int) -> torch.Tensor:
    """The columns of the output that `view.v[..., turn::turns]` holds."""
    by_byte = torch.arange(view.v_dim).view(-1, stored_as(view.format).per_byte)
    return by_byte[turn::turns].flatten()


def _one_of_each_shape(work: Work) -> tuple[int, ...]:
    shapes = [(q.shape, view.k.shape, view.v.shape) for q, view in work.layers]
    return tuple(i for i, shape in enumerate(shapes) if shapes.index(shape) == i)


def _tokens_to_look_at(q: torch.Tensor, view: KVView) -> tuple[int, ...]:
    length = view.length(0)
    tokens = dict.fromkeys((length - 1, 0, length // 2))
    return tuple(tokens)[: min(q.shape[1], view.v.shape[3])]


def _oracle_of(view: KVView, *queries: torch.Tensor) -> tuple[torch.Tensor, ...]:
    group = view.group(queries[0])
    by_kv_head = [q.reshape(view.batch, view.kv_heads, group, -1) for q in queries]
    out = oracle_decode(torch.cat(by_kv_head, dim=2).flatten(1, 2), view)
    heads = out.reshape(view.batch, view.kv_heads, len(queries) * group, -1)
    return tuple(part.flatten(1, 2) for part in torch.split(heads, group, dim=2))


def _query_towards(q: torch.Tensor, view: KVView, tokens: tuple[int, ...]) -> torch.Tensor:
    """A query like `q` whose head h looks along the key of `tokens[h % len(tokens)]`."""
    keys = []
    for head in range(q.shape[1]):
        kv_head, token = head // view.group(q), tokens[head % len(tokens)]
        row = {
            name: torch.stack([each[kv_head] for each in _token_rows(view, name, token)])
            for name in view.tensors()
        }
        scale, zero = _side(row.get("k_scale")), _side(row.get("k_zero"))
        one_token = row["k"][:, None]
        keys.append(numbers_of_k(one_token, scale, zero, view.format, torch.float32)[:, 0])
    return (_TOWARDS * torch.stack(keys, dim=1)).to(q.dtype)
