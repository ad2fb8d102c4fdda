"""The command `run`: thin over the runner, registered by the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kvgauge.cli_options import tokens

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


# Parameters that say what is measured, by their names in `jobs.Options`.
_FIELDS = {
    "profile": "profile", "suite": "suites", "model": "models", "backend": "backends",
    "kv_format": "kv_formats", "think": "think_tokens", "batch": "batches",
    "cache_state": "cache_states", "launch": "launches", "page_size": "page_sizes",
    "budget_s": "budget_s", "seed": "seed",
    "try_oversize": "try_oversize",
}  # fmt: skip


def run(
    context: typer.Context,
    profile: Annotated[str, typer.Option(help="smoke, standard or nightly.")] = "smoke",
    suite: Annotated[list[str] | None, typer.Option(help="footprint, decode, model.")] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="As for plan; repeat for several.")
    ] = None,
    backend: Annotated[list[str] | None, typer.Option(help="As in `--list`; repeat.")] = None,
    kv_format: Annotated[
        list[str] | None,
        typer.Option(help="fp16, bf16, int8, int4, kivi4 ...; repeat for several."),
    ] = None,
    think: Annotated[
        list[int] | None,
        tokens("Tokens in the cache instead of the profile's depths: 500, or 8k of 1,024; repeat."),
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Batches; repeat for several.")] = None,
    cache_state: Annotated[
        list[str] | None, typer.Option(help="cold or hot: the caches before a decode step.")
    ] = None,
    launch: Annotated[
        list[str] | None, typer.Option(help="stream or graph: how a GPU gets a decode step.")
    ] = None,
    page_size: Annotated[
        list[int] | None,
        typer.Option(help="Caches in pages of so many tokens, beside contiguous ones."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    require_device: Annotated[str | None, typer.Option(help="Exit 2 on another kind.")] = None,
    gpu: Annotated[int, typer.Option(help="Index of the GPU.")] = 0,
    budget_s: Annotated[float | None, typer.Option(help="Stop after so many seconds.")] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Where the run goes.")] = None,
    isolate: Annotated[
        bool, typer.Option("--isolate", help="Each cell in a fresh process: a crash is a record.")
    ] = False,
    timeout_s: Annotated[
        float | None, typer.Option(help="With --isolate: seconds a cell may take.")
    ] = None,
    try_oversize: Annotated[
        bool, typer.Option("--try-oversize", help="Try cells that do not fit the memory.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of all random data.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Finish the run in --run-dir.")] = False,
    only_list: Annotated[bool, typer.Option("--list", help="Show the cells and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure: footprint, decode and a real model."""
    from kvgauge import run_command

    asked: dict[str, Any] = {
        "profile": profile, "suites": tuple(suite or ()), "models": tuple(model or ()),
        "backends": tuple(backend or ()), "kv_formats": tuple(kv_format or ()),
        "think_tokens": tuple(think or ()), "batches": tuple(batch or ()),
        "cache_states": tuple(cache_state or ()), "launches": tuple(launch or ()),
        "page_sizes": tuple(page_size or ()),
        "budget_s": budget_s, "seed": seed, "try_oversize": try_oversize,
    }  # fmt: skip
    manner = run_command.Manner(isolate, timeout_s, only_list=only_list, as_json=as_json)
    if resume:
        given = {name for name in context.params if _is_given(context, name)}
        again = {field: asked[field] for name, field in _FIELDS.items() if name in given}
        where = run_command.Where(
            device if "device" in given else None, gpu if "gpu" in given else None, require_device
        )
        run_command.resume(run_dir, again, where, manner)
    else:
        where = run_command.Where(device, gpu, require_device)
        run_command.start(asked, where, run_dir, manner)


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
