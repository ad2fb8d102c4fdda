"""Break one line of the Triton kernels at a time: the tests under the interpreter must fail each time.

    python tests/campaigns/mutate_triton.py [TEXT]     only mutations with TEXT in them; writes nothing then

Writes results/triton_mutations.md. About 40 minutes on two cores. Exit code 1 where a mutation survives.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = tuple(
    ROOT / "tests" / "property" / f"test_triton_{name}.py"
    for name in ("against_oracle", "parts", "latents", "cache_ops")
)
OUT = ROOT / "results" / "triton_mutations.md"
KERNELS, LAUNCH, PACKED, LATENTS = "kernels.py", "launch.py", "packed.py", "latents.py"
REFUSALS = "refusals.py"
# Tests of files that no other test reaches; of the rest all are run.
STORES, MOVES, CACHE = "stores.py", "moves.py", "cache.py"
OWN_TESTS = {
    LATENTS: TESTS[2:3], REFUSALS: TESTS[2:3], STORES: TESTS[3:], MOVES: TESTS[3:], CACHE: TESTS[3:]
}  # fmt: skip
NUMBERS, TOKENS = "numbers.py", "tokens.py"


@dataclass(frozen=True)
class Mutation:
    """One text in one file of kvgauge_kernels/triton that becomes another, where it stands first."""

    file: str
    old: str
    new: str


MUTATIONS = tuple(
    Mutation(*row)
    for row in (
        # Which program does what.
        (KERNELS, "kv_head = tl.program_id(0) // row_blocks", "kv_head = tl.program_id(0) % row_blocks"),
        (KERNELS, "first = split * chunk", "first = split * chunk + 1"),
        (KERNELS, "length = tl.load(lengths + sequence)", "length = tl.load(lengths)"),
        (KERNELS, "last = tl.minimum(first + chunk, length)", "last = first + chunk"),
        (KERNELS, "(tl.program_id(0) % row_blocks) * ROWS", "(tl.program_id(0) % row_blocks) * 0"),
        (KERNELS, "heads = kv_head * group + rows", "heads = kv_head + rows"),
        (LAUNCH, "view.kv_heads * -(-group // configs.ROWS)", "view.kv_heads"),
        # How far it reads.
        (KERNELS, "k_columns, mask=k_mask, other=0)", "k_columns)"),
        (KERNELS, "v_columns, mask=v_mask, other=0)", "v_columns)"),
        (KERNELS, "w_columns, mask=w_mask, other=0)", "w_columns)"),
        (PACKED, "tl.load(k_at, mask=k_mask, other=0)", "tl.load(k_at)"),
        (PACKED, "tl.load(v_at, mask=v_mask, other=0)", "tl.load(v_at)"),
        # Where it reads.
        (KERNELS, "sequence.to(tl.int64) * q_batch_stride", "sequence.to(tl.int64) * q_head_stride"),
        (KERNELS, "k + wide_head * k_head_stride", "k + wide_head * v_head_stride"),
        (KERNELS, "v + wide_head * v_head_stride", "v"),
        (KERNELS, "valid = start + in_block < last", "valid = start + in_block <= last"),
        (TOKENS, "page = outer\n", "page = outer * 0\n"),
        (TOKENS, "before = tl.cast(start, tl.int64)", "before = tl.cast(first, tl.int64)"),
        (TOKENS, "table_stride + start // PAGE", "table_stride + first // PAGE"),
        (TOKENS, "before = tl.cast(start % PAGE, tl.int64)", "before = tl.cast(0, tl.int64)"),
        (TOKENS, "tl.int64)\n        token = position % PAGE", "tl.int64)\n        token = in_block % PAGE"),
        (TOKENS, "            token = position % PAGE", "            token = in_block % PAGE"),
        (TOKENS, "in_block\n        page = tl.load(table + outer", "in_block\n        page = tl.load(table"),
        (TOKENS, "outer * table_stride + position // PAGE", "table_stride + position // PAGE"),
        (KERNELS, "k_outer_stride + before * k_token_stride", "k_outer_stride + before * v_token_stride"),
        (KERNELS, "v_outer_stride + before * v_token_stride", "v_outer_stride + before * k_token_stride"),
        (KERNELS, "else valid[:, None] & (k_columns < K_DIM)", "else valid[:, None]"),
        # Scales.
        (KERNELS, "scores *= tl.load(at", "scores += 0 * tl.load(at"),
        (KERNELS, "at = k_scale + wide_head * k_scale_head_stride", "at = k_scale"),
        (KERNELS, "at += before * k_scale_token_stride", "at += 0 * k_scale_token_stride"),
        (KERNELS, "page * v_scale_outer_stride", "0 * v_scale_outer_stride"),
        (KERNELS, "at += before * v_scale_token_stride", "at += 0 * v_scale_token_stride"),
        (KERNELS, "tl.maximum(tl.max(tl.abs(scale), 0), 1e-30)", "tl.max(tl.abs(scale), 0)"),
        (KERNELS, "weights * (scale / largest)", "weights * scale"),
        (KERNELS, "out += tl.dot(weights, values) * largest", "out += tl.dot(weights, values)"),
        (NUMBERS, "(24 - 8 * tl.arange(0, 4))", "(8 * tl.arange(0, 4))"),
        (NUMBERS, ")) >> 24", ")) >> 25"),
        # fp8, by shifts.
        (NUMBERS, "(8 * tl.arange(0, 4))) & 0xFF", "(24 - 8 * tl.arange(0, 4))) & 0xFF"),
        (NUMBERS, "if MANTISSA == 2", "if MANTISSA == 0"),
        (NUMBERS, "(bits << 8)", "(bits << 7)"),
        (NUMBERS, "(bits & 0x80) << 8", "(bits & 0x40) << 8"),
        (NUMBERS, "* 256.0", "* 128.0"),
        (KERNELS, "keys = fp8_numbers(keys, FP8_MANTISSA)", "keys = keys"),
        # int4 and int2.
        (NUMBERS, "shifts = BITS * tl.arange(0, 32 // BITS)", "shifts = 2 * tl.arange(0, 32 // BITS)"),
        (NUMBERS, "((1 << BITS) - 1)", "15"),
        (NUMBERS, "- 1024.0", "- 1023.0"),
        (NUMBERS, "- 8388608.0", "- 8388607.0"),
        (NUMBERS, "[:, :, None] + zero.to(parts.dtype)", "[:, :, None] - zero.to(parts.dtype)"),
        (NUMBERS, "parts = parts * scale", "parts = parts + scale"),
        (PACKED, "k_sides = wide_head * k_scale_head_stride", "k_sides = wide_head * 0"),
        (PACKED, "v_sides = wide_head * v_scale_head_stride", "v_sides = wide_head * 0"),
        (PACKED, "side = k_sides + page * k_scale_outer_stride", "side = k_sides + 0 * page"),
        (PACKED, "side = v_sides + page * v_scale_outer_stride", "side = v_sides + 0 * page"),
        (PACKED, "side += before * k_scale_token_stride", "side += 0 * k_scale_token_stride"),
        (PACKED, "side += before * v_scale_token_stride", "side += 0 * v_scale_token_stride"),
        (PACKED, "(k_groups < tl.cdiv(K_DIM, GROUP))", "(k_groups < 1)"),
        (PACKED, "(v_groups < tl.cdiv(V_DIM, GROUP))", "(v_groups < 1)"),
        (PACKED, "k_groups = tl.arange(0, K_PARTS) // (GROUP // PART)", "k_groups = tl.arange(0, K_PARTS)"),
        (PACKED, "v_groups = tl.arange(0, V_PARTS) // (GROUP // PART)", "v_groups = tl.arange(0, V_PARTS)"),
        (PACKED, "tl.load(k_zero + at", "tl.load(k_scale + at"),
        (PACKED, "tl.load(v_zero + at", "tl.load(v_scale + at"),
        (PACKED, "tl.dot(query, tl.trans(keys)) * score_scale", "tl.dot(query, tl.trans(keys))"),
        (PACKED, "tl.where(valid, scores, float(\"-inf\"))", "tl.where(valid, scores, 0.0)"),
        (PACKED, "out *= kept[:, None]", "out *= 1.0"),
        (PACKED, "last = tl.minimum(first + chunk, length)", "last = first + chunk"),
        (PACKED, "heads = kv_head * group + rows", "heads = kv_head + rows"),
        (PACKED, "length -= hidden", "length -= 0"),
        # MLA's latents.
        (LATENTS, "kv_head = tl.program_id(0) // row_blocks", "kv_head = tl.program_id(0) % row_blocks"),
        (LATENTS, "length = tl.load(lengths + sequence)", "length = tl.load(lengths)"),
        (LATENTS, "first = split * chunk", "first = split * chunk + 1"),
        (LATENTS, "last = tl.minimum(first + chunk, length)", "last = first + chunk"),
        (LATENTS, "(tl.program_id(0) % row_blocks) * ROWS", "(tl.program_id(0) % row_blocks) * 0"),
        (LATENTS, "heads = kv_head * group + rows", "heads = kv_head + rows"),
        (LATENTS, "rope_columns = V_DIM + tl.arange", "rope_columns = tl.arange"),
        (LATENTS, "sequence.to(tl.int64) * q_batch_stride", "sequence.to(tl.int64) * q_head_stride"),
        (LATENTS, "k + wide_head * k_head_stride", "k"),
        (LATENTS, "valid = start + in_block < last", "valid = start + in_block <= last"),
        (LATENTS, "page * k_outer_stride", "0 * page * k_outer_stride"),
        (LATENTS, "before * k_token_stride", "before * 0"),
        (LATENTS, "+ columns, mask=valid[:, None], other=0)", "+ columns)"),
        (LATENTS, "+ rope_columns, mask=valid[:, None], other=0)", "+ rope_columns)"),
        (LATENTS, "tl.dot(q_rope, tl.trans(rope.to(dtype)), scores)", "scores"),
        (LATENTS, "tl.trans(rope.to(dtype)), scores) * score_scale", "tl.trans(rope.to(dtype)), scores)"),
        (LATENTS, 'tl.where(valid, scores, float("-inf"))', "tl.where(valid, scores, 0.0)"),
        (LATENTS, "now = tl.maximum(best, tl.max(scores, 1))", "now = best * 0 + 0.0"),
        (LATENTS, "kept = tl.exp2(best - now)", "kept = tl.exp2(best - best)"),
        (LATENTS, "total = total * kept + tl.sum(weights, 1)", "total = total + tl.sum(weights, 1)"),
        (LATENTS, "out *= kept[:, None]", "out *= 1.0"),
        (LATENTS, "(outer * q_heads + heads)", "(outer + heads)"),
        (LATENTS, "best + tl.log2(total)", "best + total"),
        (LATENTS, "total)[:, None],\n        mask=in_group[:, None],", "total)[:, None],"),
        (LATENTS, "out / tl.where(total == 0.0, 1.0, total)[:, None]", "out"),
        (LAUNCH, '"ROPE_DIM": view.k_dim - view.v_dim', '"ROPE_DIM": 32'),
        (LAUNCH, "(said := latents_refusal(view))", "(said := None)"),
        (REFUSALS, "if not view.shares_rows:", "if False:"),
        # A row quantized and appended.
        (STORES, "position = tl.load(lengths + outer)", "position = tl.load(lengths)"),
        (STORES, "new += outer * new_batch_stride", "new += 0 * new_batch_stride"),
        (STORES, "+ head * new_head_stride", "+ 0 * new_head_stride"),
        (STORES, "outer * table_stride + position // PAGE", "outer * table_stride"),
        (STORES, "position = position % PAGE", "position = position + 0"),
        (STORES, "head * head_stride + place * token_stride", "head * head_stride"),
        (STORES, "head * side_head_stride + place * side_token_stride", "head * side_head_stride"),
        (STORES, "rows += outer * outer_stride", "rows += 0 * outer_stride"),
        (STORES, "side = outer * side_outer_stride", "side = 0 * side_outer_stride"),
        (STORES, "(x + 12582912.0) - 12582912.0", "tl.floor(x + 0.5)"),
        (STORES, "tl.minimum(columns, DIM - 1)", "tl.minimum(columns, DIM)"),
        (STORES, "low = tl.min(numbers, 1)", "low = tl.max(numbers, 1)"),
        (STORES, "tl.max(numbers, 1) - low.to(tl.float32)", "tl.max(numbers, 1) - tl.min(numbers, 1)"),
        (STORES, "above = numbers - low.to(tl.float32)", "above = numbers - tl.min(numbers, 1)"),
        (STORES, "where(step == 0.0, 1.0, step)", "where(step == 0.0, 0.0, step)"),
        (STORES, "1.0, step).to(tl.float16)\n            s", "0.5, step).to(tl.float16)\n            s"),
        (STORES, "0.0), LEVELS)", "0.0), LEVELS + 1)"),
        (STORES, "tl.maximum(half_to_even(tl.div_rn(above, steps)), 0.0)", "half_to_even(above / steps)"),
        (STORES, "(BITS * tl.arange(0, PER_BYTE))", "(BITS * (PER_BYTE - 1 - tl.arange(0, PER_BYTE)))"),
        (STORES, "mask=at < DIM // PER_BYTE", "mask=at < PADDED"),
        (STORES, "there = groups < tl.cdiv(DIM, GROUP)", "there = groups < GROUPS"),
        (STORES, "tl.store(zero + side + groups, low", "tl.store(zero + side + groups, step"),
        (STORES, "in_row = columns < DIM", "in_row = columns < PADDED"),
        (STORES, "tl.max(tl.abs(numbers), 0), 127.0)", "tl.max(numbers, 0), 127.0)"),
        (STORES, "tl.max(tl.abs(numbers), 0), 127.0)", "tl.max(tl.abs(numbers), 0), 128.0)"),
        (STORES, "tl.maximum(codes, -127.0), 127.0)", "tl.maximum(codes, -128.0), 126.0)"),
        (STORES, "7 if MANTISSA == 3 else 15", "8 if MANTISSA == 3 else 15"),
        (STORES, "(1 << (SHIFT - 1)) - 1) + ", "(1 << (SHIFT - 1))) + "),
        (STORES, "+ ((bits >> SHIFT) & 1)", "+ 0"),
        (STORES, "tl.where(bits < SMALL, ", "tl.where(bits < 0, "),
        (STORES, "0x7E if MANTISSA == 3 else 0x7C", "0x7F if MANTISSA == 3 else 0x7C"),
        (STORES, "tl.where(bits > 0x7F800000, 0x7F, codes)", "codes"),
        (STORES, "(bits >> 24) & 0x80", "(bits >> 23) & 0x80"),
        # Rows moved.
        (MOVES, "page = tl.load(table + outer * table_stride", "page = tl.load(table + 0 * table_stride"),
        (MOVES, "position = position % PAGE", "position = position + 0"),
        (MOVES, "page * outer_stride + position", "0 * outer_stride + position"),
        (MOVES, "tl.program_id(0) * COLUMNS", "tl.program_id(0) * 0"),
        (MOVES, "* head_stride * WIDE\n    for", "* 0\n    for"),
        (MOVES, "* head_stride * WIDE\n    token", "* 0\n    token"),
        (MOVES, "valid = to < count", "valid = to < count - 1"),
        (MOVES, "range(0, count, BLOCK_N)", "range(0, BLOCK_N, BLOCK_N)"),
        (MOVES, "kept + outer * kept_stride", "kept + 0 * kept_stride"),
        (MOVES, "valid[:, None] & (columns < WORDS)", "valid[:, None] & (columns < WORDS + 1)"),
        (MOVES, "here[:, None] * WIDE + columns", "here[:, None] + columns"),
        (MOVES, "there[:, None] * WIDE + columns", "there[:, None] + columns"),
        (MOVES, "source + tl.program_id(2)", "source"),
        (MOVES, "target + tl.program_id(2)", "target"),
        (MOVES, "tl.program_id(0) * BLOCK_N", "0 * BLOCK_N"),
        (MOVES, "(token < PAGE)[:, None] & (columns < WORDS)", "(columns < WORDS + 0 * token[:, None])"),
        (MOVES, "[:, None] & (columns < WORDS)\n    inside", "[:, None] & (columns < COLUMNS)\n    inside"),
        (MOVES, "(here + inside)[:, None] * WIDE", "(here + inside)[:, None]"),
        (CACHE, "if not view.shares_rows:", "if True:"),
        (CACHE, "kernel[(-(-rows.shape[3] // columns), ", "kernel[(rows.shape[3] // columns, "),
        (CACHE, "copy_rows[(-(-size // block_n), ", "copy_rows[(max(1, size // block_n), "),
        (CACHE, "_LOAD_BYTES = 16", "_LOAD_BYTES = 4"),
        (CACHE, "    if both:", "    if False:"),
        # Windows and sinks.
        (TOKENS, "hidden = tl.maximum(length - window - sinks, 0)", "hidden = length - window - sinks"),
        (TOKENS, "length - window - sinks", "length - window"),
        (TOKENS, "tl.where(position < sinks, 0, hidden)", "tl.where(position <= sinks, 0, hidden)"),
        (KERNELS, "length -= hidden", "length -= 0"),
        (LAUNCH, "min(n, view.window + view.sink_tokens)", "n"),
        # The softmax over blocks.
        (KERNELS, "tl.dot(query, tl.trans(keys)) * score_scale", "tl.dot(query, tl.trans(keys))"),
        (LAUNCH, "math.log2(math.e)", "1.0"),
        (KERNELS, 'tl.where(valid, scores, float("-inf"))', "tl.where(valid, scores, 0.0)"),
        (KERNELS, "now = tl.maximum(best, tl.max(scores, 1))", "now = best * 0 + 0.0"),
        (KERNELS, "kept = tl.exp2(best - now)", "kept = tl.exp2(best - best)"),
        (KERNELS, "total = total * kept + tl.sum(weights, 1)", "total = total + tl.sum(weights, 1)"),
        (KERNELS, "out *= kept[:, None]", "out *= 1.0"),
        (TOKENS, "tl.constexpr(-3.0e38)", 'tl.constexpr(float("-inf"))'),
        (KERNELS, "tl.where(total == 0.0, 1.0, total)", "total"),
        (PACKED, "tl.where(total == 0.0, 1.0, total)", "total"),
        (LATENTS, "tl.where(total == 0.0, 1.0, total)", "total"),
        (KERNELS, "tl.max(tl.abs(scale), 0)", "tl.max(scale, 0)"),
        # What it leaves, and the merge.
        (KERNELS, "(outer * q_heads + heads)", "(outer + heads)"),
        (KERNELS, "best + tl.log2(total)", "best + total"),
        (KERNELS, "mask=in_group[:, None] & (v_columns < V_DIM)", "mask=v_columns[None, :] < V_DIM"),
        (KERNELS, "used = tl.cdiv(length, chunk)", "used = splits"),
        (KERNELS, "range(0, used, BLOCK_S)", "range(0, BLOCK_S, BLOCK_S)"),
        (KERNELS, "weights = tl.exp2(of_splits - now)", "weights = tl.exp(of_splits - now)"),
        (KERNELS, "total = total * kept + tl.sum(weights, 0)", "total = total + tl.sum(weights, 0)"),
        (KERNELS, "merged = merged * kept", "merged = merged"),
        (KERNELS, "(merged / total)", "merged"),
        # A part.
        (KERNELS, "(best + tl.log2(total)) * 0.69", "(best + tl.log2(total)) * 0.70"),
        (KERNELS, "tl.store(sums + head, (best + tl.log2(total))", "tl.store(sums + head, (best + total)"),
        (KERNELS, "tl.store(sums + head", "tl.store(sums + 0 * head"),
        (LAUNCH, "torch.float32, device=q.device)\n    sums", "q.dtype, device=q.device)\n    sums"),
    )
)  # fmt: skip


def source(file: str) -> str:
    """The text of one file of kvgauge_kernels/triton as it is."""
    return (ROOT / "kernels" / "kvgauge_kernels" / "triton" / file).read_text()


def failing_test(mutation: Mutation) -> str | None:
    """The first test that fails over a copy of the kernels with that mutation; None where all pass."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "kernels", Path(folder) / "kernels")
        file = Path(folder) / "kernels" / "kvgauge_kernels" / "triton" / mutation.file
        file.write_text(source(mutation.file).replace(mutation.old, mutation.new, 1))
        done = subprocess.run(
            [
                sys.executable, "-m", "pytest", *map(str, OWN_TESTS.get(mutation.file, TESTS)),
                "-x", "-p", "no:cacheprovider", "-o", f"pythonpath=bench {folder}/kernels reports tests",
            ],
            env={
                **os.environ, "TRITON_INTERPRET": "1", "KVGAUGE_HYPOTHESIS": "unshrunk",
                "PYTHONPATH": f"{folder}/kernels",
            },
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
    if done.returncode == 0:
        return None
    if done.returncode < 0:  # the interpreter writes where the kernel says
        return "(the process dies)"
    failed = re.search(r"^FAILED \S+::(\w+)", done.stdout, re.MULTILINE)
    if failed is None:
        raise SystemExit(done.stdout[-3000:] + done.stderr[-1000:])
    return failed[1]


def main() -> int:
    text = sys.argv[1] if len(sys.argv) > 1 else ""
    if stale := [f"{m.file} has no {m.old!r}" for m in MUTATIONS if m.old not in source(m.file)]:
        raise SystemExit("\n".join(stale) + "\nmend the list")
    chosen = [m for m in MUTATIONS if any(text in x for x in (m.file, m.old, m.new))]
    rows, survivors = [], 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for mutation, test in zip(chosen, pool.map(failing_test, chosen), strict=True):
            survivors += test is None
            rows.append((mutation, test))
            print(f"{len(rows):3} {test or 'SURVIVES'}: {mutation.new!r}", flush=True)
    if not text:
        OUT.write_text(document(rows))
    print(f"{len(chosen)} mutations, {survivors} survive")
    return 1 if survivors else 0


def document(rows: list[tuple[Mutation, str | None]]) -> str:
    """The table as it is committed."""
    from importlib.metadata import version

    survivors = sum(test is None for _, test in rows)
    lines = [
        "# Mutations of the Triton kernels",
        "",
        f"`python tests/campaigns/mutate_triton.py`: {len(rows)} one-line mutations of the kernels and their "
        f"launch, each against `tests/property/test_triton_*.py` under the interpreter "
        f"of triton {version('triton')}. {survivors} survive.",
        "",
        "| file | line | mutated | test that fails |",
        "|---|---|---|---|",
    ]
    for mutation, test in rows:
        old, new = (" ".join(t.split()).replace("|", "\\|") for t in (mutation.old, mutation.new))
        lines.append(f"| {mutation.file} | `{old}` | `{new}` | {test or '**none: survives**'} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
