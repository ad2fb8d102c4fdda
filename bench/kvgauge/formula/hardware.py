"""Cards by name: memory, bandwidth and dense arithmetic rates, as the vendors' datasheets state them.

GB is 10^9 bytes, as a datasheet writes it: an 80 GB card counts as 80e9 bytes, though drivers may
report more (nvidia-smi shows 81,559 MiB, 85.5e9 bytes, on an H100 80GB). Rates are those of the tensor
or matrix cores without sparsity, accumulating in fp32; where a datasheet prints the sparse figure alone,
half of it. GeForce cards accumulate in fp32 at half their fp16 rate, and the slower rate is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvgauge.errors import UserError, short
from kvgauge.units import GB

_GBS, _TFLOPS = 10**9, 10**12


@dataclass(frozen=True, slots=True)
class Gpu:
    """One card. `fp8_flops_per_s` is None where it has no 8-bit floating-point arithmetic."""

    name: str
    memory_bytes: int
    bytes_per_s: float
    fp16_flops_per_s: float
    fp8_flops_per_s: float | None
    source: str
    aliases: tuple[str, ...] = ()


def _card(
    name: str, gb: int, gb_per_s: float, fp16: float, fp8: float | None, source: str, *aliases: str
) -> Gpu:
    narrow = None if fp8 is None else fp8 * _TFLOPS
    return Gpu(name, gb * GB, gb_per_s * _GBS, fp16 * _TFLOPS, narrow, source, aliases)


_A100 = "NVIDIA A100 Tensor Core GPU datasheet"
_H100 = "NVIDIA H100 Tensor Core GPU datasheet (sparse figures halved)"
_H200 = "NVIDIA H200 Tensor Core GPU datasheet (sparse figures halved)"
_B200 = "NVIDIA DGX B200 datasheet, an eighth of the system (sparse figures halved)"
_L4 = "NVIDIA L4 Tensor Core GPU datasheet (sparse figures halved)"
_L40S = "NVIDIA L40S datasheet"
_A10G = "NVIDIA A10G datasheet"
_3090 = "NVIDIA Ampere GA102 GPU architecture whitepaper"
_4090 = "NVIDIA Ada GPU architecture whitepaper"
_5090 = "NVIDIA RTX Blackwell GPU architecture whitepaper"
_MI300X = "AMD Instinct MI300X data sheet"

CARDS: tuple[Gpu, ...] = (
    #     name              GB  GB/s  fp16 and fp8 TFLOP/s, source, other names
    _card("A100-SXM-40GB", 40, 1555, 312, None, _A100, "A100-40GB", "A100-SXM4-40GB"),
    _card("A100-SXM-80GB", 80, 2039, 312, None, _A100, "A100", "A100-80GB", "A100-SXM4-80GB"),
    _card("A100-PCIe-40GB", 40, 1555, 312, None, _A100),
    _card("A100-PCIe-80GB", 80, 1935, 312, None, _A100, "A100-80GB-PCIe"),
    _card("H100-SXM", 80, 3350, 989.5, 1979, _H100, "H100", "H100-80GB", "H100-80GB-HBM3"),
    _card("H100-PCIe", 80, 2000, 756.5, 1513, _H100),
    _card("H100-NVL", 94, 3900, 835.5, 1670.5, _H100),
    _card("H200", 141, 4800, 989.5, 1979, _H200, "H200-SXM", "H200-141GB"),
    _card("H200-NVL", 141, 4800, 835.5, 1670.5, _H200),
    _card("B200", 180, 8000, 2250, 4500, _B200, "B200-SXM", "B200-180GB"),
    _card("L4", 24, 300, 121, 242.5, _L4),
    _card("L40S", 48, 864, 362.05, 733, _L40S),
    _card("A10G", 24, 600, 70, None, _A10G),
    _card("RTX-3090", 24, 936, 71, None, _3090, "3090"),
    _card("RTX-4090", 24, 1008, 165.2, 330.3, _4090, "4090"),
    _card("RTX-5090", 32, 1792, 209.5, 419, _5090, "5090"),
    _card("MI300X", 192, 5300, 1307.4, 2614.9, _MI300X),
)

_NOISE = ("nvidia", "geforce", "amd", "instinct", "tensorcoregpu")


def _plain(name: str) -> str:
    text = "".join(c for c in name.lower() if c.isalnum())
    for word in _NOISE:
        text = text.replace(word, "")
    return text


_BY_NAME = {_plain(name): card for card in CARDS for name in (card.name, *card.aliases)}


def gpu_named(name: str) -> Gpu:
    """The card of that name: case, spaces, hyphens and the vendor's name do not matter."""
    found = _BY_NAME.get(_plain(name[:80]))
    if found is not None:
        return found
    import difflib  # only where a name is wrong

    close = difflib.get_close_matches(_plain(name[:80]), _BY_NAME, n=6, cutoff=0.5)
    names = list(dict.fromkeys(_BY_NAME[key].name for key in close))[:3]
    hint = f"did you mean {' or '.join(names)}?" if names else "one of"
    known = "" if names else f" {', '.join(card.name for card in CARDS)}"
    raise UserError(f"unknown GPU '{short(name)}': {hint}{known}")
