"""split_decode_packed: split-KV decode attention over int4 and int2, in Triton's language.

As `kernels.split_decode`, and merged by the same `merge_splits`; what differs is that a row's codes
become numbers by the scale and the zero point of their group, in registers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kvgauge_kernels.triton.numbers import grouped_numbers
from kvgauge_kernels.triton.tokens import LOWEST, hidden_tokens, place


@triton.jit(
    do_not_specialize=[
        "tokens", "chunk", "group", "window", "sinks", "table_stride",
        "k_scale_outer_stride", "k_scale_head_stride",
        "v_scale_outer_stride", "v_scale_head_stride",
    ]
)  # fmt: skip
def split_decode_packed(
    q,  # [batch, q_heads, K_DIM] fp16 or bf16
    k,  # uint8 [batch, kv_heads, tokens, K_DIM * BITS / 8], or pages of such rows
    v,  # as k, with V_DIM
    k_scale,  # fp16 like k with its last dimension the groups
    v_scale,
    k_zero,  # of the strides of k_scale
    v_zero,
    table,  # int32 [batch, max_pages], or None: contiguous
    lengths,  # int32 [batch], or None: every sequence has `tokens`
    parts,  # out: fp32 [batch, q_heads, splits, V_DIM]
    part_sums,  # out: fp32 [batch, q_heads, splits]
    tokens,
    chunk,  # tokens a program, a multiple of BLOCK_N
    group,  # query heads to one K/V head
    window,  # as in split_decode
    sinks,
    score_scale,  # K_DIM ** -0.5 * log2(e): weights are powers of two
    q_batch_stride, q_head_stride,
    k_outer_stride, k_head_stride, k_token_stride,
    v_outer_stride, v_head_stride, v_token_stride,
    k_scale_outer_stride, k_scale_head_stride, k_scale_token_stride,
    v_scale_outer_stride, v_scale_head_stride, v_scale_token_stride,
    table_stride,
    K_DIM: tl.constexpr,
    V_DIM: tl.constexpr,
    K_PADDED: tl.constexpr,  # the next power of two
    V_PADDED: tl.constexpr,
    BITS: tl.constexpr,  # of a code: 4 or 2
    GROUP: tl.constexpr,  # elements to one scale and zero, a power of two
    PAGE: tl.constexpr,  # tokens a page, 0 where contiguous
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,  # tokens an iteration
    UPCAST: tl.constexpr,  # under the interpreter alone: bf16 is multiplied as fp32
):  # fmt: skip
    row_blocks = tl.cdiv(group, ROWS)
    kv_head = tl.program_id(0) // row_blocks
    split = tl.program_id(1)
    sequence = tl.program_id(2)
    length = tokens
    if lengths is not None:
        length = tl.load(lengths + sequence)
    hidden = hidden_tokens(length, window, sinks)
    length -= hidden
    first = split * chunk
    if first >= length:
        return
    last = tl.minimum(first + chunk, length)

    rows = (tl.program_id(0) % row_blocks) * ROWS + tl.arange(0, ROWS)  # within the group
    heads = kv_head * group + rows
    k_columns = tl.arange(0, K_PADDED)
    v_columns = tl.arange(0, V_PADDED)
    in_block = tl.arange(0, BLOCK_N)
    query = tl.load(
        q + sequence.to(tl.int64) * q_batch_stride + heads[:, None] * q_head_stride + k_columns,
        mask=(rows[:, None] < group) & (k_columns < K_DIM),
        other=0.0,
    )
    dtype: tl.constexpr = tl.float32 if UPCAST else query.dtype
    rounded: tl.constexpr = query.dtype
    query = query.to(dtype)

    # Rows in words of 32 bits, and parts of a padded row that have a scale each: those of one long group
    # are the same one, because parts longer than 32 spill registers. Of the parts the real ones are read.
    k_words = tl.arange(0, K_PADDED * BITS // 32)
    v_words = tl.arange(0, V_PADDED * BITS // 32)
    PART: tl.constexpr = min(GROUP, 32)
    K_PARTS: tl.constexpr = K_PADDED // PART
    V_PARTS: tl.constexpr = V_PADDED // PART
    k_groups = tl.arange(0, K_PARTS) // (GROUP // PART)
    v_groups = tl.arange(0, V_PARTS) // (GROUP // PART)

    # Offsets from the start of a tensor are 64 bits wide, those within a block 32 bits.
    outer = sequence.to(tl.int64)
    wide_head = kv_head.to(tl.int64)
    k_head = k + wide_head * k_head_stride
    v_head = v + wide_head * v_head_stride
    k_sides = wide_head * k_scale_head_stride
    v_sides = wide_head * v_scale_head_stride

    best = tl.full([ROWS], LOWEST, tl.float32)  # largest score so far, in powers of two
    total = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, V_PADDED], tl.float32)
    for start in tl.range(first, last, BLOCK_N):
        valid = start + in_block < last
        page, before, token = place(
            start, in_block, valid, outer, table, table_stride, sinks, hidden, PAGE, BLOCK_N
        )

        # Past a sequence's length memory may hold anything, also NaN: it is not read.
        k_rows = k_head + page * k_outer_stride + before * k_token_stride + token * k_token_stride
        k_at = k_rows.to(tl.pointer_type(tl.int32))[:, None] + k_words
        k_mask = (
            valid[:, None] if K_DIM == K_PADDED else valid[:, None] & (k_words < K_DIM * BITS // 32)
        )
        words = tl.load(k_at, mask=k_mask, other=0)  # K rows
        side = k_sides + page * k_scale_outer_stride
        side += before * k_scale_token_stride + token * k_scale_token_stride
        at = side[:, None] + k_groups
        mask = valid[:, None] & (k_groups < tl.cdiv(K_DIM, GROUP))
        scale = tl.load(k_scale + at, mask=mask, other=0.0)
        zero = tl.load(k_zero + at, mask=mask, other=0.0)
        keys = grouped_numbers(words, scale, zero, BITS, K_PADDED, K_PARTS, dtype).to(dtype)
        scores = tl.dot(query, tl.trans(keys)) * score_scale
        scores = tl.where(valid, scores, float("-inf"))

        now = tl.maximum(best, tl.max(scores, 1))
        kept = tl.exp2(best - now)
        weights = tl.exp2(scores - now[:, None])
        total = total * kept + tl.sum(weights, 1)
        best = now

        v_rows = v_head + page * v_outer_stride + before * v_token_stride + token * v_token_stride
        v_at = v_rows.to(tl.pointer_type(tl.int32))[:, None] + v_words
        v_mask = (
            valid[:, None] if V_DIM == V_PADDED else valid[:, None] & (v_words < V_DIM * BITS // 32)
        )
        words = tl.load(v_at, mask=v_mask, other=0)  # V rows
        side = v_sides + page * v_scale_outer_stride
        side += before * v_scale_token_stride + token * v_scale_token_stride
        at = side[:, None] + v_groups
        mask = valid[:, None] & (v_groups < tl.cdiv(V_DIM, GROUP))
        scale = tl.load(v_scale + at, mask=mask, other=0.0)
        zero = tl.load(v_zero + at, mask=mask, other=0.0)
        values = grouped_numbers(words, scale, zero, BITS, V_PADDED, V_PARTS, dtype).to(dtype)
        out *= kept[:, None]
        out = tl.dot(weights.to(rounded).to(dtype), values, out)

    # [batch, q_heads, splits]: the grid says how many heads and splits there are.
    q_heads = tl.num_programs(0) // row_blocks * group
    at = (outer * q_heads + heads) * tl.num_programs(1) + split
    in_group = rows < group
    tl.store(part_sums + at, best + tl.log2(total), mask=in_group)
    tl.store(
        parts + at[:, None] * V_DIM + v_columns,
        out / tl.where(total == 0.0, 1.0, total)[:, None],
        mask=in_group[:, None] & (v_columns < V_DIM),
    )
