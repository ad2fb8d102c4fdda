"""The kernels, in Triton's language: split-KV decode attention, and the merge of the splits.

One program of `split_decode` reads one chunk of one sequence's tokens for one K/V head, once for up to
ROWS query heads of its group: those are the rows of the matrix products. It leaves the chunk's output
and the log2 of its sum of weights; `merge_splits` puts the chunks of a query head together.

Loads of K and V carry the comments `K rows` and `V rows`: the audit finds their machine code by them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kvgauge_kernels.triton.numbers import fp8_bytes, fp8_numbers, int8_numbers
from kvgauge_kernels.triton.tokens import LOWEST, hidden_tokens, place


# What varies with the length of a cache is not specialised: one piece of machine code serves all of
# them, the one that the audit reads. Strides of K and V are, which is what makes their loads wide.
@triton.jit(
    do_not_specialize=[
        "tokens", "chunk", "group", "window", "sinks", "table_stride",
        "k_scale_outer_stride", "k_scale_head_stride",
        "v_scale_outer_stride", "v_scale_head_stride",
    ]
)  # fmt: skip
def split_decode(
    q,  # [batch, q_heads, K_DIM] fp16 or bf16
    k,  # [batch, kv_heads, tokens, K_DIM], or pages [pages, kv_heads, PAGE, K_DIM]; fp8 as uint8
    v,  # as k, with V_DIM
    k_scale,  # fp16 like k without its last dimension, or None: the elements are the numbers
    v_scale,
    table,  # int32 [batch, max_pages], or None: contiguous
    lengths,  # int32 [batch], or None: every sequence has `tokens`
    parts,  # out: fp32 [batch, q_heads, splits, V_DIM]
    part_sums,  # out: fp32 [batch, q_heads, splits]
    tokens,
    chunk,  # tokens a program, a multiple of BLOCK_N
    group,  # query heads to one K/V head
    window,  # of the last tokens those are read, and besides them the first `sinks`; None: all are
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
    PAGE: tl.constexpr,  # tokens a page, 0 where contiguous
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,  # tokens an iteration
    FP8_MANTISSA: tl.constexpr,  # bits, 0 where the cache is not fp8
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
    # What is multiplied. Under the interpreter bf16 becomes fp32 before a product, and rounded to bf16
    # as on a GPU: its dot multiplies the bit patterns of bf16 (triton issue 11584).
    dtype: tl.constexpr = tl.float32 if UPCAST else query.dtype
    rounded: tl.constexpr = query.dtype
    query = query.to(dtype)

    # Offsets from the start of a tensor are 64 bits wide, those within a block 32 bits.
    outer = sequence.to(tl.int64)
    wide_head = kv_head.to(tl.int64)
    k_head = k + wide_head * k_head_stride
    v_head = v + wide_head * v_head_stride

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
        k_mask = valid[:, None] if K_DIM == K_PADDED else valid[:, None] & (k_columns < K_DIM)
        keys = tl.load(k_rows[:, None] + k_columns, mask=k_mask, other=0)  # K rows
        if FP8_MANTISSA:
            keys = fp8_numbers(keys, FP8_MANTISSA)
        keys = keys.to(dtype)
        scores = tl.dot(query, tl.trans(keys)) * score_scale
        if k_scale is not None:
            at = k_scale + wide_head * k_scale_head_stride + page * k_scale_outer_stride
            at += before * k_scale_token_stride + token * k_scale_token_stride
            scores *= tl.load(at, mask=valid, other=0.0).to(tl.float32)
        scores = tl.where(valid, scores, float("-inf"))

        now = tl.maximum(best, tl.max(scores, 1))
        kept = tl.exp2(best - now)
        weights = tl.exp2(scores - now[:, None])
        total = total * kept + tl.sum(weights, 1)
        best = now

        v_rows = v_head + page * v_outer_stride + before * v_token_stride + token * v_token_stride
        if v.dtype.element_ty.primitive_bitwidth == 16:
            v_mask = valid[:, None] if V_DIM == V_PADDED else valid[:, None] & (v_columns < V_DIM)
            values = tl.load(v_rows[:, None] + v_columns, mask=v_mask, other=0)  # V rows
        else:
            words = v_rows.to(tl.pointer_type(tl.int32))
            w_columns = tl.arange(0, V_PADDED // 4)
            w_mask = (
                valid[:, None] if V_DIM == V_PADDED else valid[:, None] & (w_columns < V_DIM // 4)
            )
            packed = tl.load(words[:, None] + w_columns, mask=w_mask, other=0)  # V rows
            if FP8_MANTISSA:
                values = fp8_numbers(fp8_bytes(packed, V_PADDED), FP8_MANTISSA)
            else:
                values = int8_numbers(packed, V_PADDED)
        values = values.to(dtype)
        out *= kept[:, None]
        if v_scale is None:
            out = tl.dot(weights.to(rounded).to(dtype), values, out)
        else:
            at = v_scale + wide_head * v_scale_head_stride + page * v_scale_outer_stride
            at += before * v_scale_token_stride + token * v_scale_token_stride
            scale = tl.load(at, mask=valid, other=0.0).to(tl.float32)
            # Relative to the block's largest: weight times scale alone can be too small for fp16.
            largest = tl.maximum(tl.max(tl.abs(scale), 0), 1e-30)
            weights = (weights * (scale / largest)).to(rounded).to(dtype)
            out += tl.dot(weights, values) * largest

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


@triton.jit(do_not_specialize=["tokens", "chunk", "splits"])
def merge_splits(
    parts,  # fp32 [batch, q_heads, splits, V_DIM]
    part_sums,  # fp32 [batch, q_heads, splits], log2
    lengths,  # as above
    out,  # fp16 or bf16 [batch, q_heads, V_DIM], contiguous; fp32 of a part
    sums,  # out: fp32 [batch, q_heads], the natural logarithm of a part's sum of weights, or None
    tokens,
    chunk,
    splits,
    V_DIM: tl.constexpr,
    V_PADDED: tl.constexpr,
    BLOCK_S: tl.constexpr,  # splits an iteration
):
    head = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    length = tokens
    if lengths is not None:
        length = tl.load(lengths + tl.program_id(1))
    used = tl.cdiv(length, chunk)  # a short sequence has fewer than the grid
    columns = tl.arange(0, V_PADDED)
    in_row = columns < V_DIM
    best = LOWEST
    total = 0.0
    merged = tl.zeros([V_PADDED], tl.float32)
    for start in range(0, used, BLOCK_S):
        split = start + tl.arange(0, BLOCK_S)
        valid = split < used
        of_splits = tl.load(part_sums + head * splits + split, mask=valid, other=float("-inf"))
        part = tl.load(
            parts + (head * splits + split)[:, None] * V_DIM + columns,
            mask=valid[:, None] & in_row,
            other=0.0,
        )
        now = tl.maximum(best, tl.max(of_splits, 0))
        kept = tl.exp2(best - now)
        weights = tl.exp2(of_splits - now)
        total = total * kept + tl.sum(weights, 0)
        merged = merged * kept + tl.sum(part * weights[:, None], 0)
        best = now
    if sums is not None:
        tl.store(sums + head, (best + tl.log2(total)) * 0.6931471805599453)  # ln(2)
    tl.store(out + head * V_DIM + columns, (merged / total).to(out.dtype.element_ty), mask=in_row)
