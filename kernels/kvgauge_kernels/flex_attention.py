"""flex-attention: torch's FlexAttention (`torch.nn.attention.flex_attention`), compiled by Inductor.

arXiv 2412.05496. On a CPU it is a C++ kernel of Inductor's, which needs a C++ compiler and AVX2; on CUDA
a Triton one (`flex_decoding`), never run on a GPU by this project yet.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kvgauge_kernels import flex_compile
from kvgauge_kernels.protocol import no_cuda
from kvgauge_kernels.stored import PLAIN_FORMATS
from kvgauge_kernels.torch_ops import SDPA_OPS
from kvgauge_kernels.view import KVView

OP = "kvgauge::flex_decode"
_BLOCK = 128  # tokens that are read or left out together: FlexAttention's own default
_ALL = 1 << 30  # a block that holds any sequence: what FlexAttention itself takes for no mask
_CUDA_HEAD_DIM = 256
_ALIGNED = 16  # bytes: Inductor copies inputs that start elsewhere


class FlexAttention:
    """Equal lengths are cut out as views; different ones, and windows with sinks, are a BlockMask.

    Of a BlockMask the blocks of 128 tokens that no query sees are not read; those at an edge are read
    whole and masked. Each shape is compiled in its first call, which takes seconds; other lengths or
    windows of the same shape are data, not another compilation. The call goes through an operator of this
    package that raises where no compiled kernel ran (`flex_compile.py`).
    """

    name = "flex-attention"
    kernel_ops = (OP,)
    forbidden_ops = (*SDPA_OPS, "aten::bmm")
    formats = PLAIN_FORMATS
    layouts = frozenset({"contiguous"})

    def version(self) -> str:
        """torch's."""
        return str(torch.__version__)

    def available(self, device: torch.device) -> str | None:
        """A CPU; CUDA from compute capability 8.0 on, with triton. `supports` says whether it compiles."""
        reason = no_cuda(device)
        if reason is not None:
            return reason
        if device.type == "cpu":
            return None
        if device.type != "cuda":
            return f"FlexAttention is called here on CPUs and CUDA, not on {device.type}"
        if importlib.util.find_spec("triton") is None:
            return "package triton is absent, with which torch compiles FlexAttention"
        major, minor = torch.cuda.get_device_capability(device)
        if not torch.version.hip and major < 8:
            return f"compute capability {major}.{minor}: FlexAttention is asked from 8.0 on"
        return None

    def supports(self, view: KVView, q_dtype: torch.dtype) -> str | None:
        """Contiguous caches of q's dtype, where a first small kernel compiled and was seen to run."""
        refusal = view.refusal(q_dtype, self.formats, self.layouts, windows=True)
        if refusal is not None:
            return refusal
        if view.k.device.type == "cuda" and max(view.k_dim, view.v_dim) > _CUDA_HEAD_DIM:
            dims = f"k_dim {view.k_dim} and v_dim {view.v_dim}"
            return f"{dims}: FlexAttention is asked up to {_CUDA_HEAD_DIM} on CUDA"
        if view.k.data_ptr() % _ALIGNED or view.v.data_ptr() % _ALIGNED:
            return f"a cache that starts at no multiple of {_ALIGNED} bytes: Inductor would copy it"
        return _unproven(view.k.device)

    def decode(self, q: torch.Tensor, view: KVView) -> torch.Tensor:
        """See AttentionBackend; raises RuntimeError where no compiled kernel ran.

        The query heads of one K/V head go in as that many query tokens, as in sdpa-flash: with
        enable_gqa the CPU kernel reads K and V once for each of them.
        """
        view.check(q)
        out: torch.Tensor = torch.ops.kvgauge.flex_decode(
            q, view.k, view.v, view.lengths, view.window, view.sink_tokens
        )
        return out

    def prefill(self, q: torch.Tensor, view: KVView) -> torch.Tensor:
        """This adapter decodes only; raises ValueError."""
        raise ValueError(
            f"backend {self.name}: it decodes only, q {list(q.shape)} over {view.batch}"
        )


def flex_decode(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lengths: list[int] | None,
    window: int | None,
    sink_tokens: int,
) -> torch.Tensor:
    """As `AttentionBackend.decode`, of the fields of a contiguous KVView; raises as `flex_compile.run`."""
    batch, kv_heads, tokens = k.shape[:3]
    known = tuple(lengths or (tokens,) * batch)
    rows = q.reshape(batch, kv_heads, q.shape[1] // kv_heads, q.shape[2])
    if window is None and len(set(known)) == 1:
        k, v = k[:, :, : known[0]], v[:, :, : known[0]]
        mask = _whole(known[0], rows.shape[2], q.device)
    else:
        last = min(window or tokens, tokens)
        mask = _block_mask(known, tokens, rows.shape[2], last, min(sink_tokens, tokens), q.device)
    return flex_compile.run(rows, k, v, mask).reshape(*q.shape[:2], v.shape[3])


@lru_cache(maxsize=64)
def _whole(tokens: int, rows: int, device: torch.device) -> Any:
    """No mask. Left to itself FlexAttention makes it while traced, by a vmap that fails in an operator."""
    from torch.nn.attention.flex_attention import BlockMask

    one = torch.ones(1, 1, 1, dtype=torch.int32, device=device)
    return BlockMask.from_kv_blocks(
        one, torch.zeros_like(one)[..., None],
        BLOCK_SIZE=_ALL, seq_lengths=(rows, tokens), compute_q_blocks=False,
    )  # fmt: skip


@lru_cache(maxsize=64)
def _block_mask(
    lengths: tuple[int, ...], tokens: int, rows: int, window: int, sinks: int, device: torch.device
) -> Any:
    """The blocks that `rows` queries a sequence see, of `tokens` tokens, all the same."""
    from torch.nn.attention.flex_attention import BlockMask

    count = -(-tokens // _BLOCK)
    ends = torch.tensor(lengths, dtype=torch.int32)
    edges = (ends, ends - window, torch.full_like(ends, sinks))
    seen = _seen(torch.arange(count * _BLOCK), *(edge[:, None] for edge in edges))
    tokens_seen = seen.view(-1, count, _BLOCK).sum(-1)
    full, part = tokens_seen == _BLOCK, (tokens_seen > 0) & (tokens_seen < _BLOCK)
    end, start, sink = (edge.to(device) for edge in edges)

    def mask_mod(b: Any, _head: Any, _row: Any, token: Any) -> Any:
        return _seen(token, end[b], start[b], sink[b])

    return BlockMask.from_kv_blocks(
        *_listed(part, rows, device), *_listed(full, rows, device),
        BLOCK_SIZE=_BLOCK, mask_mod=mask_mod, seq_lengths=(rows, tokens), compute_q_blocks=False,
    )  # fmt: skip


def _seen(
    token: torch.Tensor, end: torch.Tensor, start: torch.Tensor, sinks: torch.Tensor
) -> torch.Tensor:
    """Whether a token is before the end of its sequence, and in the window or among the sinks."""
    return (token < end) & ((token >= start) | (token < sinks))


def _listed(
    blocks: torch.Tensor, rows: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of bool `[batch, blocks]` how many and which, int32 `[batch, 1, row blocks(, blocks)]`."""
    which = blocks.int().argsort(dim=1, descending=True, stable=True).int()
    shape = (len(blocks), 1, -(-rows // _BLOCK))
    counts = blocks.sum(1, dtype=torch.int32)[:, None, None].expand(shape)
    listed = which[:, None, None].expand(*shape, -1)
    return counts.contiguous().to(device), listed.contiguous().to(device)


@lru_cache
def _unproven(device: torch.device) -> str | None:
    """Why no compiled kernel was seen to run on that device, below a TorchDispatchMode; None if one was."""

    class Below(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            return func(*args, **(kwargs or {}))

    q, rows = torch.ones(1, 4, 64, device=device), torch.ones(1, 2, 256, 64, device=device)
    try:
        with Below():
            flat = torch.ops.kvgauge.flex_decode(q, rows, rows.clone(), None, None, 0)
        right = bool(torch.allclose(flat, torch.ones_like(flat), atol=1e-3))
    except Exception as raised:  # whatever a compiler says is the reason
        return f"FlexAttention does not compile here: {flex_compile.said(raised)}"
    return None if right else "FlexAttention compiled, and computed something else"


def _like_query(q: torch.Tensor, _k: torch.Tensor, v: torch.Tensor, *_others: Any) -> torch.Tensor:
    return torch.empty((*q.shape[:2], v.shape[3]), dtype=q.dtype, device=q.device)


_library = torch.library.Library("kvgauge", "FRAGMENT")
_library.define(
    "flex_decode(Tensor q, Tensor k, Tensor v, int[]? lengths, int? window, int sink_tokens) -> Tensor"
)
for _key in ("CUDA", "CPU"):
    _library.impl("flex_decode", flex_decode, _key)
torch.library.register_fake(OP, _like_query, lib=_library)
