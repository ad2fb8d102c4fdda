"""The self-test: the checks, then a run of decode cells chosen for it, then the bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvgauge import runner
from kvgauge.devices.types import Device
from kvgauge.errors import ExitCode
from kvgauge.jobs import Options, list_jobs
from kvgauge.schema import Record, Run
from kvgauge.selftest.bundle import write_bundle
from kvgauge.selftest.checks import Check, left_out, run_checks
from kvgauge.store.folder import RunFolder

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a self-test found."""

    checks: tuple[Check, ...]
    run: Run
    left_out: dict[str, str]
    """Backends that this machine has not, and why."""

    @property
    def wrong(self) -> tuple[Check, ...]:
        """Backends that gave a wrong answer or none, and should have given one."""
        return tuple(check for check in self.checks if check.state in ("wrong", "failed"))

    @property
    def code(self) -> ExitCode:
        """4 where a kernel is wrong; 5 where one failed, or the run is not complete."""
        states = {check.state for check in self.checks}
        statuses = {record.status for record in self.run.records}
        if "wrong" in states or "invalid" in statuses:
            return ExitCode.REGRESSION
        if "failed" in states or self.run.manifest.status != "complete":
            return ExitCode.INCOMPLETE
        return ExitCode.DONE

    def shares(self) -> list[tuple[str, dict[str, float | None]]]:
        """A row a point: its name, and each backend's share of the read bandwidth measured beside it.

        None where a time was not measured or is invalid; see also `disturbed`.
        """
        rows: dict[str, dict[str, float | None]] = {}
        for record in self.timed():
            share = record.ratio.bandwidth if record.ratio and record.status == "ok" else None
            rows.setdefault(_point(record), {})[_backend(record)] = share
        return list(rows.items())

    def disturbed(self) -> set[tuple[str, str]]:
        """Points and backends whose time was disturbed: their shares are indications and do not count."""
        return {(_point(r), _backend(r)) for r in self.timed() if r.trust.flags}

    def timed(self) -> list[Record]:
        """The last record of each cell that a backend here can measure."""
        return [r for r in self.run.latest() if r.backend is not None and r.status != "unsupported"]


def _backend(record: Record) -> str:
    return record.backend.name if record.backend is not None else ""


def options_for(device_kind: str, budget_s: float, seed: int) -> Options:
    """Four shapes, three formats and depths, batch 1 and 16 on a GPU; on a CPU fewer, and small depths."""
    if device_kind == "cuda":
        return Options(
            suites=("decode",),
            models=("smollm2-135m", "llama-3.1-8b", "llama-3.1-70b", "qwen3-32b"),
            kv_formats=("bf16", "int8", "int4"), think_tokens=(1024, 16_384, 65_536), batches=(1, 16),
            launches=("graph",), budget_s=budget_s, seed=seed,
        )  # fmt: skip
    return Options(
        suites=("decode",), models=("smollm2-135m", "llama-3.1-8b"), kv_formats=("bf16", "int8"),
        think_tokens=(256, 1024, 4096), batches=(1, 2), budget_s=budget_s, seed=seed,
    )  # fmt: skip


def selftest(
    device: Device,
    options: Options,
    run_dir: Path,
    out: Path,
    command: Sequence[str],
    progress: Progress = lambda _text: None,
) -> Outcome:
    """Check, measure into `run_dir`, write the bundle to `out`; raises UserError."""
    with RunFolder.create(run_dir) as folder:
        checks = run_checks(device.torch_device, options.seed, progress)
        count = len(list_jobs(options, device.ref.kind).jobs)
        done = 0

        def shown(_job: object, _record: object) -> None:
            nonlocal done
            done += 1
            progress(f"cell {done} of {count}")

        run = runner.execute(options, device, folder, command, shown)
    missing = left_out(device.torch_device)
    write_bundle(out, checks, run_dir, device.properties(), missing)
    return Outcome(tuple(checks), run, missing)


def _point(record: Record) -> str:
    trace = record.trace
    return (
        f"{record.model.name} {record.cache.format} depth {trace.depth_tokens} batch {trace.batch}"
    )
