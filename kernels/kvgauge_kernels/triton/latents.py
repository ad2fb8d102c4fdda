"""split_decode_latents: split-KV decode attention over MLA's latents, in Triton's language.

A token's row is K, and its first V_DIM elements are V: one load serves both products, and what K has
beyond V, the rope part, is a second tile. The audit knows the first load as V's and the second as K's.
As `kernels.split_decode` otherwise, and merged by the same `merge_splits`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kvgauge_kernels.triton.tokens import LOWEST, place


@triton.jit(do_not_specialize=["tokens", "chunk", "group", "table_stride"])
def split_decode_latents(
    q,  # [batch, q_heads, V_DIM + ROPE_DIM] fp16 or bf16
    k,  # [batch, kv_heads, tokens, V_DIM + ROPE_DIM], or pages of such rows; of q's dtype
    table,  # int32 [batch, max_pages], or None: contiguous
    lengths,  # int32 [batch], or None: every sequence has `tokens`
    parts,  # out: fp32 [batch, q_heads, splits, V_DIM]
    part_sums,  # out: fp32 [batch, q_heads, splits]
    tokens,
    chunk,  # tokens a program, a multiple of BLOCK_N
    group,  # query heads to one K/V head
    score_scale,  # (V_DIM + ROPE_DIM) ** -0.5 * log2(e): weights are powers of two
    q_batch_stride, q_head_stride,
    k_outer_stride, k_head_stride, k_token_stride,
    table_stride,
    V_DIM: tl.constexpr,  # a power of two, as is ROPE_DIM
    ROPE_DIM: tl.constexpr,
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
    first = split * chunk
    if first >= length:
        return
    last = tl.minimum(first + chunk, length)

    rows = (tl.program_id(0) % row_blocks) * ROWS + tl.arange(0, ROWS)  # within the group
    heads = kv_head * group + rows
    in_group = rows < group
    columns = tl.arange(0, V_DIM)
    rope_columns = V_DIM + tl.arange(0, ROPE_DIM)
    in_block = tl.arange(0, BLOCK_N)
    q_rows = q + sequence.to(tl.int64) * q_batch_stride + heads[:, None] * q_head_stride
    query = tl.load(q_rows + columns, mask=in_group[:, None], other=0.0)
    q_rope = tl.load(q_rows + rope_columns, mask=in_group[:, None], other=0.0)
    dtype: tl.constexpr = tl.float32 if UPCAST else query.dtype
    rounded: tl.constexpr = query.dtype
    query = query.to(dtype)
    q_rope = q_rope.to(dtype)

    # Offsets from the start of a tensor are 64 bits wide, those within a block 32 bits.
    outer = sequence.to(tl.int64)
    wide_head = kv_head.to(tl.int64)
    k_head = k + wide_head * k_head_stride

    best = tl.full([ROWS], LOWEST, tl.float32)  # largest score so far, in powers of two
    total = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, V_DIM], tl.float32)
    for start in tl.range(first, last, BLOCK_N):
        valid = start + in_block < last
        page, before, token = place(
            start, in_block, valid, outer, table, table_stride, None, 0, PAGE, BLOCK_N
        )

        # Past a sequence's length memory may hold anything, also NaN: it is not read.
        k_rows = k_head + page * k_outer_stride + before * k_token_stride + token * k_token_stride
        latent = tl.load(k_rows[:, None] + columns, mask=valid[:, None], other=0)  # V rows
        rope = tl.load(k_rows[:, None] + rope_columns, mask=valid[:, None], other=0)  # K rows
        latent = latent.to(dtype)
        scores = tl.dot(query, tl.trans(latent))
        scores = tl.dot(q_rope, tl.trans(rope.to(dtype)), scores) * score_scale
        scores = tl.where(valid, scores, float("-inf"))

        now = tl.maximum(best, tl.max(scores, 1))
        kept = tl.exp2(best - now)
        weights = tl.exp2(scores - now[:, None])
        total = total * kept + tl.sum(weights, 1)
        best = now
        out *= kept[:, None]
        out = tl.dot(weights.to(rounded).to(dtype), latent, out)

    # [batch, q_heads, splits]: the grid says how many heads and splits there are.
    q_heads = tl.num_programs(0) // row_blocks * group
    at = (outer * q_heads + heads) * tl.num_programs(1) + split
    tl.store(part_sums + at, best + tl.log2(total), mask=in_group)
    tl.store(
        parts + at[:, None] * V_DIM + columns,
        out / tl.where(total == 0.0, 1.0, total)[:, None],
        mask=in_group[:, None],
    )
