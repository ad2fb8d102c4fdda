"""The native CPU kernels beside the memory's read bandwidth: formats, pages, depths, and torch's best.

PYTHONPATH=bench:kernels:reports:tests python -m campaigns.cpu_roof [--rounds N] [--out FILE]

One layer of 32 query heads, 8 K/V heads and a head_dim of 128, batch 1. In each round every case is timed
once, each right after a reading of the bandwidth that also flushes the caches, so that all see the same
states of the machine. Ratios are formed within a round; the tables give their medians, apart for rounds in
which the two cores were near each other and far (`ping_pong_ns`). Each table has rounds of its own, minutes
from the others', and the machine does not give the same all the time: compare within a table. What a
backend does not read with these instructions has no row.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch

from campaigns.arguments import count, page
from kernels_for_tests import held_bytes, random_layer
from kvgauge.devices.cpu import CpuDevice
from kvgauge.devices.probe import make_probe
from kvgauge.measure.stats import median
from kvgauge.store.provenance import git_state
from kvgauge_kernels import BACKENDS, KVView
from kvgauge_kernels.cpu import probe
from kvgauge_kernels.cpu.native_module import native
from kvgauge_kernels.stored import PLAIN_DTYPE

DEPTHS = (8192, 16384, 32768, 65536, 131072)
# Between the two states that a virtual machine's cores were seen in: 31 to 50 and 129 to 209 ns.
NEAR_NS = 80.0
FORMATS = (
    *(("cpu", fmt) for fmt in ("fp16", "bf16", "fp32", "fp8_e4m3")),
    *(
        (name, fmt)
        for name in ("cpu", "cpu-q8")
        for fmt in ("int8", "int4", "int2", "kivi4", "kivi2")
    ),
)
IN_PAGES = ("fp16", "int8", "int4")
LINES = (("cpu", "fp16"), ("cpu", "int8"), ("cpu", "int4"))
WITHOUT_MEMORY = """\
What a step's instructions cost where memory costs nothing: all rows of a head are one row of K and one of V,
or all pages one page; scales and zeros of a cache in one piece are read as they lie. All is per token of 8
heads, at 32,768 tokens. `from memory` is the usual step in the same rounds; `at best`, the speed over the
first from memory if memory cost nothing. `products alone` is what the multiply-adds or integer dot products
take at the rates that the probe finds for them, before the rounds (of bf16 with AVX-512 half are dot
products, which it does not know).
"""
OF_TORCH = ("eager", "sdpa-math", "sdpa-flash", "dequant+sdpa")


@dataclass(frozen=True, slots=True)
class Case:
    """One step that is timed, and the bytes that it must read."""

    label: str
    step: Callable[[], object]
    held_bytes: int
    times_s: list[float] = field(default_factory=list)
    read_bytes_per_s: list[float] = field(default_factory=list)

    def share(self, i: int) -> float:
        """Bytes over time over bandwidth, in round i."""
        return self.held_bytes / self.times_s[i] / self.read_bytes_per_s[i]


def case(
    label: str, backend: str, fmt: str, depth: int, layout: str = "contiguous", *, huge: bool = True
) -> Case:
    """A layer of that depth with random data, in huge pages where the system gives them."""
    view = random_layer(fmt, depth, layout, huge_pages=huge)
    q = torch.randn(1, 32, 128).to(PLAIN_DTYPE.get(fmt, torch.bfloat16))
    return Case(label, partial(BACKENDS[backend].decode, q, view), held_bytes(view))


def measure(cases: list[Case], rounds: int, read: Callable[[], float]) -> list[str]:
    """Time all in turn; the state of each round."""
    states = []
    for warm in (True, *[False] * rounds):
        distance_ns = probe.ping_pong_ns()
        for each in cases:
            bytes_per_s = read()
            start = time.perf_counter()
            each.step()
            taken_s = time.perf_counter() - start
            if not warm:
                each.times_s.append(taken_s)
                each.read_bytes_per_s.append(bytes_per_s)
        if not warm:
            unknown = distance_ns is None
            states.append(
                "unknown" if unknown else "near" if (distance_ns or 0) < NEAR_NS else "far"
            )
    return states


def table(cases: list[Case], states: list[str], first: Case) -> list[str]:
    """A line a case and state: median time, share of the read bandwidth, speed over `first`."""
    lines = ["| case | cores | rounds | ms | share of read bandwidth | speed over the first |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for each in cases:
        for state in ("near", "far", "unknown"):
            at = [i for i, s in enumerate(states) if s == state]
            if at:
                ms = median([each.times_s[i] for i in at]) * 1e3
                share = median([each.share(i) for i in at])
                speed = median([first.times_s[i] / each.times_s[i] for i in at])
                lines.append(
                    f"| {each.label} | {state} | {len(at)} | {ms:.2f} | {share:.2f} | {speed:.2f} |"
                )
    return lines


def line_through(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Least squares of relative errors: intercept and slope of y over x."""
    weights = [1 / y**2 for _, y in points]
    total = sum(weights)
    mean_x = sum(w * x for w, (x, _) in zip(weights, points, strict=True)) / total
    mean_y = sum(w * y for w, (_, y) in zip(weights, points, strict=True)) / total
    spread = sum(w * (x - mean_x) ** 2 for w, (x, _) in zip(weights, points, strict=True))
    both = sum(w * (x - mean_x) * (y - mean_y) for w, (x, y) in zip(weights, points, strict=True))
    slope = both / spread
    return mean_y - slope * mean_x, slope


def depth_table(rounds: int, read: Callable[[], float]) -> list[str]:
    """Time against depth, and how far each depth is from the straight line."""
    lines = ["| case | tokens | ms | line | off the line |", "|---|---|---|---|---|"]
    for backend, fmt in LINES:
        cases = [case(f"{backend} {fmt}", backend, fmt, depth) for depth in DEPTHS]
        measure(cases, rounds, read)
        points = [
            (float(depth), median(each.times_s)) for depth, each in zip(DEPTHS, cases, strict=True)
        ]
        start, slope = line_through(points)
        for each, (depth, taken_s) in zip(cases, points, strict=True):
            on_line_s = start + slope * depth
            lines.append(
                f"| {each.label} | {depth:,.0f} | {taken_s * 1e3:.2f} | {on_line_s * 1e3:.2f} | "
                f"{taken_s / on_line_s - 1:+.1%} |"
            )
    return lines


def able(backend: str, fmt: str) -> bool:
    """Whether the backend reads that format here."""
    view = random_layer(fmt, 256)
    return BACKENDS[backend].supports(view, PLAIN_DTYPE.get(fmt, torch.bfloat16)) is None


def roof_table(depth: int, rounds: int, read: Callable[[], float]) -> list[str]:
    """The formats, and 16-bit and int8 caches in pages, beside `cpu` in fp16."""
    cases = []
    for backend, fmt in FORMATS:
        if able(backend, fmt):
            cases.append(case(f"`{backend}` {fmt}", backend, fmt, depth))
            if fmt in IN_PAGES:
                cases += [
                    case(f"`{backend}` {fmt}, {layout}", backend, fmt, depth, layout)
                    for layout in ("pages in order", "pages at random")
                ]
                small = f"`{backend}` {fmt}, no huge pages asked for"
                cases.append(case(small, backend, fmt, depth, huge=False))
    return table(cases, measure(cases, rounds, read), cases[0])


def products_s(backend: str, fmt: str) -> float | None:
    """Seconds that the products of one token take if nothing else is done; None where the level has none."""
    if fmt in ("fp32", "fp16", "bf16", "fp8_e4m3"):
        rate: float | None = probe.multiply_adds_per_s()
    else:
        rate = probe.integer_dots_per_s(16 if backend == "cpu" else 8)
    return rate and 2 * 2 * 32 * 128 / rate


def without_memory(full: KVView) -> KVView:
    """A head's rows are one row of K and one of V, which stand for all; of a cache in pages, one page."""
    if full.block_table is not None:
        return replace(full, block_table=torch.zeros_like(full.block_table))
    return replace(
        full, k=full.k[:, :, :1].expand(full.k.shape), v=full.v[:, :, :1].expand(full.v.shape)
    )


def instruction_table(rounds: int, read: Callable[[], float]) -> list[str]:
    """What the instructions alone cost, beside the same step from memory."""
    lines = ["| case | ns | from memory, ns | at best | products alone, ns |",
             "|---|---|---|---|---|"]  # fmt: skip
    depth, pages = 32768, "pages in order"
    named = [
        (name, fmt, layout)
        for name, fmt in FORMATS
        if able(name, fmt)
        for layout in (("contiguous", pages) if fmt in IN_PAGES else ("contiguous",))
    ]
    alone_s = [products_s(name, fmt) for name, fmt, _ in named]
    usual: list[Case] = []
    bare: list[Case] = []
    for backend, fmt, layout in named:
        view = random_layer(fmt, depth, layout)
        label = f"`{backend}` {fmt}" + (f", {layout}" if layout == pages else "")
        q = torch.randn(1, 32, 128).to(PLAIN_DTYPE.get(fmt, torch.bfloat16))
        for cases, which in ((usual, view), (bare, without_memory(view))):
            cases.append(Case(label, partial(BACKENDS[backend].decode, q, which), held_bytes(view)))
    measure([each for pair in zip(usual, bare, strict=True) for each in pair], rounds, read)
    for full, each, of_products_s in zip(usual, bare, alone_s, strict=True):
        ns, from_memory = (median(x.times_s) / depth * 1e9 for x in (each, full))
        best = median([a / b for a, b in zip(usual[0].times_s, each.times_s, strict=True)])
        alone = "-" if of_products_s is None else f"{of_products_s * 1e9:.0f}"
        lines.append(f"| {each.label} | {ns:.0f} | {from_memory:.0f} | {best:.2f} | {alone} |")
    return lines


def torch_table(rounds: int, read: Callable[[], float]) -> list[str]:
    """Of each format our kernel and all that torch has."""
    lines: list[str] = []
    for fmt in ("fp32", "fp16", "bf16", "fp8_e4m3", "int8", "int4", "int2", "kivi4", "kivi2"):
        names = [name for name in ("cpu", *OF_TORCH) if able(name, fmt)]
        cases = [case(f"`{name}` {fmt}", name, fmt, 32768) for name in names]
        lines += table(cases, measure(cases, rounds, read), cases[0])[2 if lines else 0 :]
    return lines


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=count, default=60)
    parser.add_argument("--out", type=page, default="results/cpu_roof.md")
    parser.add_argument(
        "--level", choices=("portable", "avx2", "avx512"), help="of kernels and probe"
    )
    given = parser.parse_args()
    module = native()
    if module is None or probe.why_not() is not None:
        raise SystemExit(str(probe.why_not()))
    if given.level is not None:
        try:
            module.force_level(given.level)
        except ValueError as why:
            parser.error(f"--level {given.level}: {why}")
    device = CpuDevice()
    read = make_probe(device).read_bytes_per_s
    parts: list[str] = []
    for depth in (32768, 131072):
        parts += [f"\n## {depth:,} tokens\n", *roof_table(depth, given.rounds, read)]
    parts += ["\n## Time against depth\n", *depth_table(given.rounds, read)]
    parts += ["\n## Without memory\n", WITHOUT_MEMORY, *instruction_table(given.rounds, read)]
    parts += ["\n## Beside torch, 32,768 tokens\n", *torch_table(max(5, given.rounds // 10), read)]
    again = f" --level {given.level}" if given.level else ""
    if given.out != Path(parser.get_default("out")):
        again += f" --out {given.out}"
    revision, dirty = git_state()
    changed = " with changes" if dirty else ""
    given.out.write_text(f"""# The CPU kernels at the memory roof

Run on {datetime.now(UTC):%Y-%m-%d} on {device.ref.name}, {module.level()}, Python \
{platform.python_version()}, torch {torch.__version__}, revision {(revision or "unknown")[:7]}{changed}.

{(__doc__ or "").split(chr(10) * 2)[2].strip()}

Again: `PYTHONPATH=bench:kernels:reports:tests python -m campaigns.cpu_roof --rounds {given.rounds}{again}`.
{chr(10).join(parts)}
""")


if __name__ == "__main__":
    main()
