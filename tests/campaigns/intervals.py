"""How often the 95% interval of a median holds it, with the profiles' own rules of when to stop.

PYTHONPATH=bench:kernels:reports:tests python -m campaigns.intervals [--trials N] [--seed S] [--out FILE]

Samples are drawn, not measured. Beside ours a percentile bootstrap (Efron 1979) of the same samples.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.random import Generator

from kvgauge.measure.sampler import stop_reason
from kvgauge.measure.stats import median, median_interval
from kvgauge.suites.profiles import PROFILES

RESAMPLES = 1000
Draw = Callable[[Generator, int], "np.ndarray[tuple[int], np.dtype[np.float64]]"]

DRAWS: dict[str, Draw] = {
    "normal, 3%": lambda rng, n: rng.normal(1, 0.03, n),
    "normal, 10%": lambda rng, n: rng.normal(1, 0.10, n),
    "lognormal, 20%": lambda rng, n: rng.lognormal(0, 0.2, n),
    "two modes, 30% at 1.6": lambda rng, n: (
        np.where(rng.random(n) < 0.3, 1.6, 1.0) * rng.normal(1, 0.02, n)
    ),
}


def bootstrap(samples: Sequence[float], rng: Generator) -> tuple[float, float]:
    """The percentile interval of resampled medians."""
    values = np.asarray(samples)
    drawn = values[rng.integers(0, len(values), (RESAMPLES, len(values)))]
    low, high = np.percentile(np.median(drawn, axis=1), (2.5, 97.5))
    return float(low), float(high)


def main() -> None:
    """Simulate, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/intervals.md"))
    given = parser.parse_args()
    rng = np.random.default_rng(given.seed)
    lines = []
    for draw_name, draw in DRAWS.items():
        truth = median(list(draw(rng, 2_000_001)))
        for profile in PROFILES.values():
            ours = theirs = taken = 0
            for _ in range(given.trials):
                times = list(draw(rng, profile.criterion.max_samples))
                n = profile.criterion.min_samples
                # No time passes in a simulation: the budget never ends it.
                while stop_reason(times[:n], 0.0, profile.criterion) is None:
                    n += 1
                low, high = median_interval(times[:n])
                ours += low <= truth <= high
                low, high = bootstrap(times[:n], rng)
                theirs += low <= truth <= high
                taken += n
            shares = (ours / given.trials, theirs / given.trials)
            lines.append(
                f"| {draw_name} | {profile.name} | {taken / given.trials:.1f} "
                f"| {shares[0]:.1%} | {shares[1]:.1%} |"
            )
            print(lines[-1], flush=True)
    body = "\n".join(lines)
    given.out.write_text(f"""# How often the interval of a median holds it

Simulated on {datetime.now(UTC):%Y-%m-%d}, {given.trials} trials a row, seed {given.seed}; 95% is meant. \
Looking at every sample and stopping when the interval is narrow costs some of it.

Again: `PYTHONPATH=bench:kernels:reports:tests python -m campaigns.intervals --trials {given.trials} \
--seed {given.seed}`.

| samples are | profile | samples taken | order statistics (ours) | percentile bootstrap |
|---|---|---|---|---|
{body}
""")


if __name__ == "__main__":
    main()
