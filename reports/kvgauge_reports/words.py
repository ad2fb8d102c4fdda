"""The parts of a report that are the same for every run: how to read it, what it does not say."""

from __future__ import annotations

READING: tuple[tuple[str, str], ...] = (
    (
        "depth_tokens",
        "Tokens that the cache holds when the step starts: prompt, thinking and answer so far.",
    ),
    (
        "scope",
        "attention: the attention of one decode step over the timed layers, nothing else. engine: "
        "one forward pass of a real model, weights included. memory: bytes alone, no time.",
    ),
    (
        "layers timed",
        "Where a profile times fewer layers than the model has, times and bytes are those of the "
        "layers timed. They are not scaled up.",
    ),
    (
        "time",
        "The median of all samples, each with a cold cache. In brackets the 95% interval "
        "of that median; n is the number of samples.",
    ),
    (
        "noise",
        "1.4826 × median absolute deviation / median: how far single samples scatter. The interval "
        "says how well the median is known, the noise how much one sample can be trusted.",
    ),
    (
        "probe",
        "The read bandwidth that the best plain loop of the project reached beside these samples, "
        "on the same machine in the same state. It is measured, not a datasheet's.",
    ),
    (
        "of probe (ratio.bandwidth)",
        "Bytes that the formula says must move / time / the probe's read bandwidth. 100% is memory "
        "read as fast as the probe; a little over is possible, because the probe is a measurement.",
    ),
    (
        "floor (ratio.floor)",
        "The least time that arithmetic allows: for each operation the larger of bytes / bandwidth "
        "and FLOPs / rate, summed, with the probe's rates. × floor is time / floor; 1 is the best.",
    ),
    (
        "error",
        "The largest difference from the oracle over the oracle's largest value. The oracle is "
        "attention in float64; for a real model, the same forward pass without a cache.",
    ),
    (
        "eager, sdpa-math, sdpa-flash, cpu",
        "eager: grouped heads, scores written to memory, as a plain implementation without "
        "FlashAttention. sdpa-math: torch's reference path, which repeats K and V and accumulates "
        "in fp32. sdpa-flash: torch's fused kernel for this device. cpu: kvgauge's own fused decode "
        "kernels for CPUs; cpu-q8 reads a cache of integers with the query and the weights in "
        "8 bits too.",
    ),
    (
        "speed-up",
        "A quotient of two medians; its interval takes the far ends of both intervals and is wider "
        "than 95%. Where it includes 1 the report says that nothing is shown. Where the probe read "
        "at different rates beside the two, the speed-up at equal bandwidth is given as well.",
    ),
    (
        "trust",
        "A time counts when the output agreed with the oracle, the kernel that ran was the one "
        "asked for, the bytes were there, and nothing disturbed the samples. A flagged time is "
        "shown and left out of every comparison.",
    ),
    (
        "flags",
        "cpu_shared: others took part of the cores' time. gpu_shared: another process was on the GPU. "
        "throttled: its clocks were held down. drifting: the samples rise or fall. probe_changed, "
        "state_changed: memory, or the way from core to core, changed its speed meanwhile. "
        "wide_interval, too_few_samples: the median is not known well enough.",
    ),
    ("GB and GiB", "GB is 10⁹ bytes, MB 10⁶; GiB is 2³⁰ bytes, KiB 2¹⁰. They are never mixed."),
)

SILENT: tuple[str, ...] = (
    "What other machines would give: every time is of the device named above, in the state that it "
    "was in.",
    "What a whole trace takes: a time is one step at one depth. A trace is the sum over all depths.",
    "What a server reserves: activations, contexts, graphs, fragmentation and paging of an engine "
    "are outside these footprints unless a row names an engine.",
    "Whether answers stay as good: rows of quantized formats say what a smaller cache costs in bytes "
    "and time, not in quality.",
    "Anything about cells that were left out, failed or were flagged, beyond the reason given.",
)
CPU_SILENT = (
    "Anything about a GPU: this was measured on a CPU, where bandwidths, kernels and the cost of "
    "quantized formats are of another kind."
)
