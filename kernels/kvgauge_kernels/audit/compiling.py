"""Compile one kernel for one target and read what came out; needs triton, and no GPU."""

from __future__ import annotations

import importlib
import subprocess
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from kvgauge_kernels.audit.amdgcn import read_amdgcn
from kvgauge_kernels.audit.cases import APPEND, COPY, KEEP, LATENTS, PACKED, SPLIT, Case, inputs
from kvgauge_kernels.audit.elf import code_hash
from kvgauge_kernels.audit.findings import Code, Findings
from kvgauge_kernels.audit.sass import read_sass
from kvgauge_kernels.audit.targets import Target, programs_at_once
from kvgauge_kernels.audit.ttir import bytes_per_token
from kvgauge_kernels.stored import stored_as
from kvgauge_kernels.triton import configs

# Kernels by the file in kvgauge_kernels/triton that holds them; all others are in kernels.py.
_FILES = {PACKED: "packed", LATENTS: "latents", APPEND: "stores", KEEP: "moves", COPY: "moves"}
# What kernels call: a change there changes them all.
SHARED_FILES = ("numbers", "tokens", "configs")


def kernels(kernel: str = SPLIT) -> ModuleType:
    """The module that holds the kernel; raises ImportError where triton is absent."""
    return importlib.import_module(f"kvgauge_kernels.triton.{_FILES.get(kernel, 'kernels')}")


def marked_rows(source: str) -> dict[int, str]:
    """The source lines that load K and V, by the comments that mark them."""
    marks = {"# K rows": "K", "# V rows": "V"}
    return {
        number: kind
        for number, text in enumerate(source.splitlines(), start=1)
        for mark, kind in marks.items()
        if text.endswith(mark)
    }


def built(case: Case, target: Target, module: ModuleType) -> Any:
    """The case as Triton compiles it. Raises what Triton raises where it does not compile."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(module, case.kernel)
    given = inputs(case, target, list(function.arg_names), function.do_not_specialize)
    attributes = {
        (function.arg_names.index(name),): [["tt.divisibility", 16]] for name in given.divisible
    }
    source = ASTSource(function, given.signature, given.constants, attributes)
    return triton.compile(
        source, GPUTarget(target.backend, target.arch, target.warp), given.options
    )


def compile_case(case: Case, target: Target, module: ModuleType) -> Findings:
    """What the case is as machine code; raises as `built`."""
    compiled = built(case, target, module)
    code, binary = _read(compiled, target, Path(str(module.__file__)))
    shared, warps = int(compiled.metadata.shared), int(compiled.metadata.num_warps)
    config = case.config(target)
    moved = None
    if config is not None:
        dims, group = case.tile_dims, stored_as(case.format).group
        padded = (configs.padded(dims[0]), configs.padded(dims[1]))
        moved = bytes_per_token(compiled.asm["ttir"], config.block_n, dims, padded, group)
    return Findings(
        code=code,
        shared_bytes=shared,
        programs_per_sm=programs_at_once(target, warps, code.registers, shared),
        bytes_per_token=moved,
        code_hash=code_hash(binary, case.kernel),
    )


def _read(built: Any, target: Target, source: Path) -> tuple[Code, bytes]:
    rows = marked_rows(source.read_text())
    if target.backend == "hip":
        return read_amdgcn(built.asm["amdgcn"], rows, source.name), built.asm["hsaco"]
    from triton import knobs

    cubin: bytes = built.asm["cubin"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        listing = _said(knobs.nvidia.nvdisasm.path, "-c", "-g", file.name)
        usage = _said(knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name)
    return read_sass(listing, usage, rows, source.name), cubin


def _said(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603
