"""Hypotheses: single changes of the assumptions that reproduce a figure which disagrees.

Each is a guess that fits the number and is reported as one; that it fits does not make it so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

from kvgauge.audit.expect import Expectation
from kvgauge.audit.sizes import LAYER_SETS, Case, expandable, windowed
from kvgauge.audit.types import Range
from kvgauge.errors import UserError
from kvgauge.formats import kv_format

_RANKS = (1, 2, 4, 8, 16, 32, 64)
_GGML = ("fp32", "fp16", "q8_0", "q5_0", "q5_1", "q4_0", "q4_1")
_TORCH = ("fp32", "fp16", "fp8_e4m3", "nvfp4")
_GIB_OVER_GB = Fraction(2**30, 10**9)
MAX_HYPOTHESES = 4


def hypotheses(expected: Expectation) -> tuple[str, ...]:
    """The single changes that reproduce the logged figure, at most four."""
    found: list[str] = []
    for text, case in _cases(expected):
        if _fits(expected, case, expected.logged):
            found.append(text)
    for text, predict in expected.variants:
        if _fits(replace(expected, predict=predict), expected.case, expected.logged):
            found.append(text)
    for text, logged in _figures(expected):
        if _fits(expected, expected.case, logged):
            found.append(text)
    return tuple(dict.fromkeys(found))[:MAX_HYPOTHESES]


def _fits(expected: Expectation, case: Case, logged: Range) -> bool:
    try:
        return any(logged.meets(computed) for computed in expected.predict(case))
    except UserError:  # a setting that cannot be: 3 ranks for 8 heads
        return False


def _cases(expected: Expectation) -> Iterator[tuple[str, Case]]:
    case = expected.case
    if expected.unit_bytes is None:  # it follows from another figure, whatever the assumptions
        return
    if case.engine != "llama.cpp":
        for ranks in _RANKS:
            if ranks != case.tp:
                yield f"tensor parallel size {ranks} instead of {case.tp}", replace(case, tp=ranks)
    for name in _GGML if case.engine == "llama.cpp" else _TORCH:
        fmt = kv_format(name)
        if fmt.bits != case.k_format.bits or fmt.scale_bytes != case.k_format.scale_bytes:
            yield f"KV format {name} instead of {case.k_format.name}", case.formatted(fmt)
    if windowed(case.shape):
        for chosen in LAYER_SETS:
            if chosen != case.layer_set:
                yield f"{chosen} layers counted, and those alone", replace(case, layer_set=chosen)
    if any(layer.kind == "mla" for layer in case.shape.layers):
        other = "again as V" if not case.latent_twice else "once only"
        yield f"the latent is stored {other}", replace(case, latent_twice=not case.latent_twice)
    if case.engine == "llama.cpp" and expandable(case.shape):
        yield (
            "K and V expanded from the latent, as llama.cpp stored MLA before April 2025",
            replace(case, expanded=True),
        )


def _figures(expected: Expectation) -> Iterator[tuple[str, Range]]:
    low, high = expected.logged.low, expected.logged.high
    if expected.unit_bytes == 1:
        yield (
            f"the printed {expected.fact.unit} read as the other of GB and GiB (MB and MiB): larger",
            Range(low * _GIB_OVER_GB, high * _GIB_OVER_GB),
        )
        yield (
            f"the printed {expected.fact.unit} read as the other of GB and GiB (MB and MiB): smaller",
            Range(low / _GIB_OVER_GB, high / _GIB_OVER_GB),
        )
        if expected.sequences and expected.sequences > 1:
            n = expected.sequences
            yield f"one such cache for each of {n} sequences", Range(low / n, high / n)
