"""FlexAttention compiled, and proved to have run compiled: torch.compile falls back on eager unseen.

Dynamo compiles nothing while a TorchDispatchMode is on the stack, does not take what it compiled before
either, and never compiles that function again: a torch.compile(flex_attention) that was called below one
runs unfused from then on, silently without fullgraph=True. Inside the implementation of an operator the
mode has been left, and the compiled graph runs (torch 2.13). `run` counts the graphs that run, so that a
call without one raises.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

_MANY = 2**16  # shapes: above torch's own limit of 8 it would refuse, or run eager
_SAID = 300


class _Runs:
    """How often a compiled graph ran."""

    count = 0


_compiled_shapes: set[tuple[Any, ...]] = set()


def run(rows: torch.Tensor, k: torch.Tensor, v: torch.Tensor, block_mask: Any) -> torch.Tensor:
    """flex_attention of rows `[batch, kv_heads, q_tokens, k_dim]` over k and v, as a compiled kernel.

    k `[batch, kv_heads, tokens, k_dim]`, v `[batch, kv_heads, tokens, v_dim]`, one dtype; returns
    `[batch, kv_heads, q_tokens, v_dim]`. A new shape is compiled, which takes seconds. Raises RuntimeError
    where no compiled graph ran, and what torch raises where it cannot compile.
    """
    shape = (
        rows.dtype, rows.device, rows.shape, k.shape, k.stride(), v.shape, v.stride(),
        block_mask.BLOCK_SIZE, torch.get_num_threads(),
    )  # fmt: skip
    if _get_current_dispatch_mode() is not None:
        raise RuntimeError("torch.compile compiles nothing below a TorchDispatchMode")
    before = _Runs.count
    with _no_limit() if shape not in _compiled_shapes else nullcontext():
        out: torch.Tensor = _compiled()(rows, k, v, block_mask=block_mask)
    if _Runs.count == before:
        raise RuntimeError("torch.compile ran flex_attention without a compiled kernel")
    _compiled_shapes.add(shape)
    return out


@lru_cache
def _compiled() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    def attend(rows: torch.Tensor, k: torch.Tensor, v: torch.Tensor, block_mask: Any) -> Any:
        return flex_attention(rows, k, v, block_mask=block_mask)

    # A function of our own, which nobody else calls below a mode. Static shapes: torch's decoding kernels
    # are for those, and a cell's result must not depend on the shapes that came before it.
    return torch.compile(attend, dynamic=False, fullgraph=True, backend=_counted)


def _counted(graph: Any, inputs: list[Any]) -> Callable[..., Any]:
    """Inductor's compiler, its product counted whenever it runs; RuntimeError without flex_attention."""
    from torch._inductor.compile_fx import compile_fx

    # Inductor lowers that node to a kernel of its templates or raises: it has no eager form there.
    if not any(node.target is torch.ops.higher_order.flex_attention for node in graph.graph.nodes):
        raise RuntimeError("the traced graph holds no flex_attention")
    compiled: Any = compile_fx(graph, inputs)

    def counted(*args: Any) -> Any:
        _Runs.count += 1
        return compiled(*args)

    return counted


def _no_limit() -> AbstractContextManager[None]:
    import torch._dynamo

    limits = {"recompile_limit": _MANY, "accumulated_recompile_limit": _MANY}
    patched: AbstractContextManager[None] = torch._dynamo.config.patch(limits)
    return patched


def said(raised: Exception) -> str:
    """An exception of the compiler in one line."""
    return f"{type(raised).__name__}: {' '.join(str(raised).split())[:_SAID]}"
