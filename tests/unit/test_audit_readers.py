"""The readers of machine code, on small listings as the tools print them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvgauge_kernels.audit.amdgcn import read_amdgcn
from kvgauge_kernels.audit.elf import code_hash, section
from kvgauge_kernels.audit.findings import Code, Findings, faults_of
from kvgauge_kernels.audit.limits import MAX_BYTES, Limit, load, save
from kvgauge_kernels.audit.sass import load_bits, read_sass
from kvgauge_kernels.audit.targets import TARGETS, programs_at_once
from kvgauge_kernels.audit.ttir import bytes_per_token, loop_loads
from triton_for_tests import elf

SASS = """
	.section	.text.split_decode,"ax",@progbits
split_decode:
	//## File "/x/kernels.py", line 17
        /*0000*/                   LDC R1, c[0x0][0x28] ;
	//## File "/x/kernels.py", line 103
        /*1100*/                   LDGSTS.E.BYPASS.128 [R128], desc[UR16][R12.64], P2 ;
        /*1110*/              @!P6 LDGSTS.E.BYPASS.128 [R128+0x800], desc[UR16][R14.64], P5 ;
	//## File "/x/kernels.py", line 95
        /*09b0*/              @!P6 LDGSTS.E [R4+0xd800], desc[UR16][R6.64], P0 ;
        /*09d0*/                   LDGDEPBAR ;
	//## File "/x/kernels.py", line 121
        /*1200*/               @P1 LDG.E.128.CONSTANT R20, desc[UR16][R4.64] ;
        /*1210*/              @UP0 LDG.E.64 R22, desc[UR16][R4.64] ;
        /*1300*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*1310*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*1320*/                   STG.E.128 desc[UR16][R4.64], R8 ;
"""
USAGE = """
Resource usage:
 Common:
  GLOBAL:0
 Function split_decode:
  REG:152 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:668 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
ROWS = {103: "K", 121: "V"}
AMDGCN = """
	.loc	1 103 29 is_stmt 1              ; kernels.py:103:29
	global_load_dwordx4 v[4:7], v[4:5], off
	.loc	1 148 29                        ; kernels.py:148:29
	global_load_ushort v9, v[4:5], off
	v_mfma_f32_16x16x16_bf16 v[0:3], v[4:5], v[6:7], v[0:3]
	.loc	1 121 29                        ; kernels.py:121:29
	buffer_load_dwordx2 v[4:5], v3, s[0:3], 0 offen
    .private_segment_fixed_size: 0
    .vgpr_count:     173
"""
TTIR = """
  tt.func public @split_decode(%q: !tt.ptr<bf16> {tt.divisibility = 16 : i32} loc("q"(#loc))) {
    %query = tt.load %a, %b, %c : tensor<16x128x!tt.ptr<bf16>> loc(#loc197)
    %out:3 = scf.for %start = %first to %last step %c64 iter_args(%best = %cst) -> (tensor<16xf32>)  : i32 {
      %page = tt.load %p, %v, %z : tensor<64x!tt.ptr<i32>> loc(#loc210)
      %keys = tt.load %k, %m, %z : tensor<64x128x!tt.ptr<i8>> loc(#loc221)
      %scores = tt.load %at, %v, %z : tensor<64x!tt.ptr<f16>> loc(#loc231)
      %packed = tt.load %w, %m, %z : tensor<64x32x!tt.ptr<i32>> loc(#loc255)
      %scale = tt.load %s, %v, %z : tensor<64x!tt.ptr<f16>> loc(#loc271)
      scf.yield %now : tensor<16xf32> loc(#loc121)
    } loc(#loc9)
"""


def test_sass_says_widths_by_source_line_copies_and_matrix_instructions() -> None:
    assert read_sass(SASS, USAGE, ROWS) == Code(
        registers=152, spills=0, local_bytes=0, load_bits={"K": (128,), "V": (64, 128)},
        async_copies=3, matrix={"HMMA.16816.F32.BF16": 2},
    )  # fmt: skip


def test_sass_says_spills_and_local_memory() -> None:
    spilled = SASS + "        /*1400*/                   STL [R1], R4 ;\n" * 2
    spilled += "        /*1500*/              @!P0 LDL.LU.64 R4, [R1] ;\n"
    code = read_sass(spilled, USAGE.replace("STACK:0", "STACK:8"), ROWS)
    assert (code.spills, code.local_bytes) == (3, 8)
    with pytest.raises(ValueError, match="no resource usage"):
        read_sass(SASS, "", ROWS)


@pytest.mark.parametrize(
    ("opcode", "bits"),
    [
        ("LDG.E", 32), ("LDG.E.U16", 16), ("LDG.E.S8.CONSTANT", 8), ("LDG.E.64", 64),
        ("LDGSTS.E.BYPASS.128", 128), ("LDG.E.128", 128), ("UBLKCP.S.G", 128),
    ],
)  # fmt: skip
def test_load_bits(opcode: str, bits: int) -> None:
    assert load_bits(opcode) == bits


@pytest.mark.parametrize(
    "opcode", ["HGMMA.64x64x16.F32", "QGMMA.64x16x32.F32", "UTCHMMA", "IMMA.16832.S8.S8"]
)
def test_other_matrix_instructions_are_known(opcode: str) -> None:
    listing = f"        /*1300*/                   {opcode} R4, R8, R12, R4 ;\n"
    assert read_sass(listing, USAGE, ROWS).matrix == {opcode: 1}


def test_amds_assembly() -> None:
    assert read_amdgcn(AMDGCN, ROWS) == Code(
        registers=173, spills=0, local_bytes=0, load_bits={"K": (128,), "V": (64,)},
        async_copies=0, matrix={"v_mfma_f32_16x16x16_bf16": 1},
    )  # fmt: skip
    spilled = AMDGCN.replace("size: 0", "size: 16") + "\tscratch_store_dword off, v1, s0\n"
    code = read_amdgcn(spilled, ROWS)
    assert (code.spills, code.local_bytes) == (1, 16)
    with pytest.raises(ValueError, match="does not say"):
        read_amdgcn("", ROWS)


def test_a_line_of_another_file_is_no_row() -> None:
    other = SASS.replace('kernels.py", line 121', 'tokens.py", line 121')
    assert read_sass(other, USAGE, ROWS, "kernels.py").load_bits == {"K": (128,)}
    files = '\t.file\t1 "/x" "kernels.py"\n\t.file\t2 "/x" "tokens.py"\n'
    other = files + AMDGCN.replace(".loc	1 121", ".loc	2 121")
    assert read_amdgcn(other, ROWS, "kernels.py").load_bits == {"K": (128,)}


def test_what_a_loop_of_packed_rows_moves() -> None:
    """int4 rows of 80 and 128 in groups of 64, a scale and a zero each: 40 + 64 + 2 * 4 + 2 * 4 bytes."""
    loads = [("words", 64, 16), ("s", 64, 2), ("z", 64, 2)] * 2
    kinds = ["i32", "f16", "f16"] * 2
    body = "\n".join(
        f"      %{name}{i} = tt.load %p, %m, %z : tensor<{n}x{width}x!tt.ptr<{kind}>> loc(#loc1)"
        for i, ((name, n, width), kind) in enumerate(zip(loads, kinds, strict=True))
    )
    ttir = f"    %o = scf.for %s = %a to %b step %c : i32 {{\n{body}\n      scf.yield %n : i32\n"
    assert bytes_per_token(ttir, 64, (80, 128), (128, 128), 64) == 120
    assert bytes_per_token(ttir, 64, (80, 128), (128, 128)) is None


def test_what_a_loop_moves() -> None:
    """int8 rows of 128 and 128 with two fp16 scales: 260 bytes a token, the table left out."""
    assert len(loop_loads(TTIR)) == 5
    assert bytes_per_token(TTIR, 64, (128, 128), (128, 128)) == 260
    assert bytes_per_token(TTIR, 64, (80, 96), (128, 128)) == 80 + 96 + 4
    assert (
        bytes_per_token(TTIR.replace("keys = tt.load", "keys = tt.x"), 64, (1, 1), (1, 1)) is None
    )
    twice = TTIR.replace(
        "      %scale", "      %more = tt.load %k : tensor<64x128x!tt.ptr<i8>>\n      %scale"
    )
    assert bytes_per_token(twice, 64, (128, 128), (128, 128)) is None
    assert loop_loads("") == []


def test_the_hash_is_of_the_instructions_alone() -> None:
    one = elf({".debug_line": b"/home/a/kernels.py", ".text.split_decode": b"\1\2\3"})
    other = elf({".debug_line": b"/srv/kernels.py", ".text.split_decode": b"\1\2\3"})
    changed = elf({".text.split_decode": b"\1\2\4"})
    assert section(one, ".text.split_decode") == b"\1\2\3"
    assert code_hash(one, "split_decode") == code_hash(other, "split_decode")
    assert code_hash(one, "split_decode") != code_hash(changed, "split_decode")
    assert code_hash(elf({".text": b"\5"}), "x") != code_hash(one, "split_decode")
    for wrong in (b"", one[:4] + b"\1" + one[5:]):
        with pytest.raises(ValueError, match="no 64-bit"):
            section(wrong, ".text")
    with pytest.raises(ValueError, match="no section"):
        code_hash(one, "merge_splits")


@pytest.mark.parametrize(
    ("target", "warps", "registers", "shared_bytes", "programs"),
    [
        ("sm_80", 4, 255, 0, 2),  # 8,192 registers a warp: 8 warps
        ("sm_80", 4, 32, 0, 16),  # 2,048 threads
        ("sm_86", 4, 32, 0, 12),  # 1,536 threads
        ("sm_86", 1, 16, 0, 16),  # 16 programs
        ("sm_80", 4, 32, 71_680, 2),  # 164 kB, and 1 kB for each program
        ("sm_90", 4, 32, 71_680, 3),  # 228 kB
        ("sm_89", 4, 32, 71_680, 1),  # 100 kB
        ("gfx942", 4, 128, 0, 4),  # 512 registers a SIMD
        ("gfx942", 4, 30, 0, 8),
        ("gfx942", 4, 30, 16_384, 4),
    ],
)
def test_programs_that_a_multiprocessor_holds(
    target: str, warps: int, registers: int, shared_bytes: int, programs: int
) -> None:
    assert programs_at_once(TARGETS[target], warps, registers, shared_bytes) == programs


GOOD = Findings(
    Code(152, 0, 0, {"K": (128,), "V": (128,)}, 48, {"HMMA.16816.F32": 32}),
    71_680,
    3,
    512.0,
    "ab" * 32,
)


def test_rules_that_no_limit_excuses() -> None:
    assert faults_of(GOOD, rows=True, programs=2) == []
    narrow = replace(GOOD, code=replace(GOOD.code, load_bits={"K": (64, 128), "V": (128,)}))
    assert faults_of(narrow, rows=True, programs=2) == ["K is loaded 64 bits at a time, not 128"]
    blind = replace(GOOD, code=replace(GOOD.code, load_bits={"K": (128,)}, matrix={}))
    assert faults_of(blind, rows=True, programs=2) == [
        "no load of V was found", "no matrix instruction",
    ]  # fmt: skip
    spilled = replace(GOOD, code=replace(GOOD.code, spills=2, local_bytes=8))
    assert "spills: 2 instructions, 8 bytes" in faults_of(spilled, rows=False, programs=1)[0]
    assert faults_of(narrow, rows=False, programs=2, moved=True) == [
        "K is loaded 64 bits at a time, not 128"
    ]
    idle = replace(GOOD, code=replace(GOOD.code, matrix={}, load_bits={"K": (128,)}))
    assert faults_of(idle, rows=False, programs=2, moved=True) == []
    assert faults_of(GOOD, rows=True, programs=4) == ["a multiprocessor holds 3 programs, not 4"]


def test_limits_name_what_got_worse() -> None:
    limit = Limit.of(GOOD)
    assert limit.worse(GOOD) == []
    better = replace(GOOD, code=replace(GOOD.code, registers=100), code_hash="cd" * 32)
    assert limit.worse(better) == []
    code = replace(GOOD.code, registers=153, async_copies=0, matrix={})
    worse = replace(GOOD, code=code, shared_bytes=71_681, programs_per_sm=2)
    assert limit.worse(worse) == [
        "153 registers, at most 152",
        "71681 bytes of shared memory, at most 71680",
        "2 programs on a multiprocessor, at least 3",
        "0 asynchronous copies, at least 48",
        "0 matrix instructions, at least 32",
    ]


def test_findings_and_limits_survive_a_file(tmp_path: Path) -> None:
    assert Findings.from_json(GOOD.to_json()) == GOOD
    limits = {"3.7.1": {"sm_90": {"split_decode/x": Limit.of(GOOD)}, "sm_80": {}}}
    file = tmp_path / "limits.json"
    save(limits, file)
    assert load(file) == limits
    assert load(tmp_path / "none.json") == {}
    for wrong in (
        "[]",
        "{}",
        '{"schema": 1}',
        '{"schema": 2, "limits": {}}',
        '{"schema": 1, "limits": {"3": 1}}',
        "x",
    ):
        file.write_text(wrong)
        with pytest.raises(ValueError, match="no limits of this program"):
            load(file)


@pytest.mark.parametrize(
    "change",
    [{"shared_bytes": "many"}, {"programs_per_sm": None}, {"code": {"registers": "x"}},
     {"code": {"load_bits": []}}, {"code": {"matrix": []}}],
)  # fmt: skip
def test_what_was_kept_in_another_form_is_no_findings(change: dict[str, Any]) -> None:
    values = GOOD.to_json()
    values["code"] = {**values["code"], **change.pop("code", {})}
    with pytest.raises((TypeError, AttributeError, KeyError)):
        Findings.from_json({**values, **change})


def test_limits_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "limits.json"
    save({"3.7.1": {"sm_90": {"k": Limit.of(GOOD)}}}, path)
    path.write_text(re.sub(r'"registers": \d+', '"registers": "many"', path.read_text()))
    with pytest.raises(ValueError, match="limits must be integers"):
        load(path)
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="no limits of this program"):
        load(path)
    path.write_text(" " * (MAX_BYTES + 1))
    with pytest.raises(ValueError, match=f"at most {MAX_BYTES} are read"):
        load(path)
