"""Where the tokens of a block lie: in Triton's language, for every kernel that reads a cache."""

from __future__ import annotations

import triton
import triton.language as tl

# Where the search for the largest score begins: finite, as -inf would make NaN of a block of such scores.
LOWEST = tl.constexpr(-3.0e38)


@triton.jit
def hidden_tokens(length, window, sinks):
    """Tokens between the sinks and the window, which no program reads; 0 without a window."""
    hidden = 0
    if window is not None:
        hidden = tl.maximum(length - window - sinks, 0)
    return hidden


@triton.jit
def place(
    start,  # of the block, counted in tokens that are read
    in_block,  # 0 to BLOCK_N
    valid,
    outer,  # int64: the sequence
    table,
    table_stride,
    sinks,  # or None: nothing is hidden
    hidden,  # tokens that are skipped behind the sinks
    PAGE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The page or sequence, its tokens before the block (64 bits wide), and each token behind those."""
    if sinks is not None:  # a block may begin before what is hidden and end behind it
        position = (start + in_block).to(tl.int64)
        position += tl.where(position < sinks, 0, hidden)
        if PAGE == 0:
            page = outer
            token = position
        else:
            page = tl.load(table + outer * table_stride + position // PAGE, mask=valid, other=0)
            page = page.to(tl.int64)
            token = position % PAGE
        before = tl.cast(0, tl.int64)
    elif PAGE == 0:
        page = outer
        before = tl.cast(start, tl.int64)
        token = in_block
    elif PAGE % BLOCK_N == 0:  # the block lies in one page
        page = tl.load(table + outer * table_stride + start // PAGE).to(tl.int64)
        before = tl.cast(start % PAGE, tl.int64)
        token = in_block
    else:
        position = start + in_block
        page = tl.load(table + outer * table_stride + position // PAGE, mask=valid, other=0)
        page = page.to(tl.int64)
        before = tl.cast(0, tl.int64)
        token = position % PAGE
    return page, before, token
