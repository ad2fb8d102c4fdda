"""keep_tokens and copy_rows: rows of a cache moved as they are stored, in Triton's language.

Rows are words of whatever width divides them; strides are in pieces of WIDE words, so that the compiler
knows where rows start. The comments `K rows` mark the loads for the audit.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def spot(
    position, outer, table, table_stride, valid, outer_stride, token_stride, PAGE: tl.constexpr
):
    """Where the tokens at these positions of a sequence lie, from its head's first: in pieces, int64."""
    page = outer
    if PAGE > 0:
        page = tl.load(table + outer * table_stride + position // PAGE, mask=valid, other=0)
        page = page.to(tl.int64)
        position = position % PAGE
    return page * outer_stride + position * token_stride


@triton.jit(
    do_not_specialize=[
        "count", "kept_stride", "table_stride", "outer_stride", "head_stride", "token_stride",
    ]
)  # fmt: skip
def keep_tokens(
    rows,  # in and out: words, [batch, kv_heads, tokens, WORDS], or pages of such rows
    kept,  # int64 [batch, count]: the positions that stay, rising
    table,  # int32 [batch, max_pages], or None: contiguous
    count,
    kept_stride,
    table_stride,
    outer_stride, head_stride, token_stride,  # in pieces of WIDE words
    WORDS: tl.constexpr,  # of a row
    WIDE: tl.constexpr,
    COLUMNS: tl.constexpr,  # words of a row that one program moves, at most
    PAGE: tl.constexpr,  # tokens a page, 0 where contiguous
    BLOCK_N: tl.constexpr,  # tokens an iteration
):  # fmt: skip
    outer = tl.program_id(2).to(tl.int64)
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    rows += tl.program_id(1).to(tl.int64) * head_stride * WIDE
    for start in range(0, count, BLOCK_N):
        to = start + tl.arange(0, BLOCK_N)
        valid = to < count
        source = tl.load(kept + outer * kept_stride + to, mask=valid, other=0).to(tl.int64)
        here = spot(source, outer, table, table_stride, valid, outer_stride, token_stride, PAGE)
        there = spot(
            to.to(tl.int64), outer, table, table_stride, valid, outer_stride, token_stride, PAGE
        )
        mask = valid[:, None] & (columns < WORDS)
        words = tl.load(rows + here[:, None] * WIDE + columns, mask=mask, other=0)  # K rows
        # A block's places may be places that it reads: all of it is read before any of it is written.
        # Blocks behind it read behind them, since positions rise. AMD's barrier waits for no load.
        tl.debug_barrier()
        tl.store(rows + there[:, None] * WIDE + columns, words, mask=mask)


@triton.jit(do_not_specialize=["outer_stride", "head_stride", "token_stride"])
def copy_rows(
    rows,  # in and out: words, [pages, kv_heads, PAGE, WORDS]
    source,  # int64 [n]: page numbers
    target,  # int64 [n]: none of them in source, each once
    outer_stride, head_stride, token_stride,  # in pieces of WIDE words
    WORDS: tl.constexpr,
    WIDE: tl.constexpr,
    COLUMNS: tl.constexpr,  # the next power of two
    PAGE: tl.constexpr,
    BLOCK_N: tl.constexpr,  # tokens a program
):  # fmt: skip
    here = tl.load(source + tl.program_id(2)).to(tl.int64) * outer_stride
    there = tl.load(target + tl.program_id(2)).to(tl.int64) * outer_stride
    rows += tl.program_id(1).to(tl.int64) * head_stride * WIDE
    token = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.arange(0, COLUMNS)
    mask = (token < PAGE)[:, None] & (columns < WORDS)
    inside = token.to(tl.int64) * token_stride
    words = tl.load(rows + (here + inside)[:, None] * WIDE + columns, mask=mask, other=0)  # K rows
    tl.store(rows + (there + inside)[:, None] * WIDE + columns, words, mask=mask)
