"""run_all.sh itself, in a copy of the checkout, with stand-ins for Python, pip and kvgauge on PATH."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = (
    "bash", "cat", "cp", "date", "df", "dirname", "grep", "mkdir", "mv", "readlink", "rm", "sed",
    "sleep", "tail", "touch", "uname",
)  # fmt: skip

# Answers questions as the real Python does, but makes no environment and installs nothing.
PYTHON = r"""#!/bin/sh
case "$1 $2" in
"-m venv")
    echo "venv $*" >>"$CALLS"
    sleep "${VENV_SECONDS:-0}"
    for last; do :; done
    mkdir -p "$last/bin" "$last/lib/python@MINOR@/site-packages"
    cp "$0" "$last/bin/python"
    for tool in kvgauge ruff mypy lint-imports pytest; do cp "$TOOL" "$last/bin/$tool"; done
    ;;
"-m compileall")
    echo "compileall $*" >>"$CALLS"
    exit 1 # as where a package has a file that is no Python
    ;;
"-m pip")
    echo "pip $*" >>"$CALLS"
    [ -z "$PIP_SAYS" ] || { echo "$PIP_SAYS"; exit 1; }
    ;;
*)
    case "$2" in
    *hexdigest*) "$REAL" -S "$@" | sed "1s/.*/@MINOR@.1/; 2s|.*|$0|" ;;
    *) exec "$REAL" -S "$@" ;;  # without site: what the tests' own Python has installed is not here
    esac
    ;;
esac
"""

# kvgauge and the tools of `test`: says how it was called and exits as told.
TOOL = r"""#!/bin/sh
name=${0##*/}
echo "$name $*" >>"$CALLS"
case "$name $1" in
"kvgauge run") mkdir -p "$5"; exit "${RUN_EXIT:-0}" ;;
"kvgauge report") exit "${REPORT_EXIT:-0}" ;;
"kvgauge gate") exit "${GATE_EXIT:-0}" ;;
"kvgauge summary") echo "six lines" ;;
mypy*) exit "${MYPY_EXIT:-0}" ;;
pytest*) echo "3 passed in 0.01s" ;;
esac
"""


@dataclass
class Machine:
    """A copy of the checkout and a PATH with nothing on it but what a test puts there."""

    root: Path
    bin: Path
    calls_file: Path
    env: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, script: str) -> Path:
        path = self.bin / name
        path.unlink(missing_ok=True)  # not through a link to the real tool
        path.write_text(script)
        path.chmod(0o755)
        return path

    def add_python(self, name: str = "python3.12", minor: str = "3.12") -> Path:
        return self.add(name, PYTHON.replace("@MINOR@", minor))

    def start(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        return self.call(self.bin, self.root / "run_all.sh", *arguments, **env)

    def call(
        self, folder: Path, script: Path, *arguments: str, **env: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.bin / "bash", script, *arguments],
            capture_output=True, text=True, timeout=30, check=False,
            cwd=folder, env=self.env | env,
        )  # fmt: skip

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines() if self.calls_file.exists() else []

    def count(self, prefix: str) -> int:
        return sum(call.startswith(prefix) for call in self.calls)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    root = tmp_path / "a check out"
    root.mkdir()
    for name in ("run_all.sh", "pyproject.toml"):
        shutil.copy(ROOT / name, root)
    shutil.copytree(ROOT / "constraints", root / "constraints")
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None, f"{tool} is needed to run run_all.sh"
        (bin_dir / tool).symlink_to(found)
    made = Machine(root, bin_dir, tmp_path / "calls")
    made.env = {
        "PATH": str(bin_dir),
        "HOME": str(tmp_path),
        "REAL": sys.executable,
        "CALLS": str(made.calls_file),
        "TOOL": str(made.add("tool", TOOL)),
    }
    made.add("df", "#!/bin/sh\necho 'disk 99999999 1 88000000 1% /'\n")
    return made


def only_run(machine: Machine) -> Path:
    (run_dir,) = (machine.root / "results" / "runs").iterdir()
    return run_dir


def test_no_python(machine: Machine) -> None:
    done = machine.start()
    assert done.returncode == 2
    assert "no Python 3.11 or newer (python3.13: not found" in done.stderr
    assert "KVGAUGE_PYTHON" in done.stderr


def test_python_too_old_or_broken(machine: Machine) -> None:
    machine.add_python("python3", "3.9")
    machine.add("python3.12", "#!/bin/sh\nexit 127\n")  # a pyenv shim of a version not chosen
    done = machine.start()
    assert done.returncode == 2
    assert "python3.12: found, but does not run" in done.stderr
    assert "python3: is Python 3.9.1" in done.stderr


def test_python_asked_for_is_not_replaced(machine: Machine) -> None:
    machine.add_python()
    done = machine.start(KVGAUGE_PYTHON="/no/such/python")
    assert done.returncode == 2
    assert "/no/such/python: not found" in done.stderr


def test_broken_shim_is_passed_over(machine: Machine) -> None:
    machine.add("python3.13", "#!/bin/sh\nexit 127\n")
    machine.add_python("python3.11", "3.11")
    done = machine.start()
    assert done.returncode == 0, done.stderr
    assert "Python 3.11.1" in done.stdout


def test_too_little_disk(machine: Machine) -> None:
    machine.add_python()
    machine.add("df", "#!/bin/sh\necho 'disk 99999999 1 1500000 99% /'\n")
    done = machine.start()
    assert done.returncode == 2
    assert "1 GB free on the disk of" in done.stderr
    assert "at least 4 GB" in done.stderr
    assert machine.calls == []


def test_first_start_measures_reports_and_gates(machine: Machine) -> None:
    machine.add_python()
    done = machine.start("nightly", "--suite", "decode")
    assert done.returncode == 0, done.stderr
    run_dir = only_run(machine)
    kvgauge = [call.removeprefix("kvgauge ") for call in machine.calls if "kvgauge " in call[:8]]
    assert kvgauge == [
        f"run --profile nightly --run-dir {run_dir} --device auto --suite decode",
        f"report {run_dir} --html {run_dir}/report.html --pdf {run_dir}/report.pdf"
        f" --md {run_dir}/summary.md",
        f"gate {run_dir} --baseline {machine.root}/results/baselines",
        f"summary {run_dir}",
    ]
    pip = [call for call in machine.calls if call.startswith("pip")]
    assert pip[0].endswith(
        "install --no-compile -e .[torch,triton,hf,report,dev] -c constraints/base.txt -c constraints/cpu.txt"
    )
    assert [call for call in machine.calls if call.startswith("compileall")] == [
        f"compileall -m compileall -q -j 0 {machine.root}/.venv/lib"
    ]
    assert f"{run_dir}/report.html" in done.stdout
    assert done.stdout.endswith("six lines\n")


def test_from_elsewhere_through_symbolic_links(machine: Machine, tmp_path: Path) -> None:
    machine.add_python()
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    (elsewhere / "first").symlink_to(machine.root / "run_all.sh")
    (elsewhere / "second").symlink_to("first")
    done = machine.call(elsewhere, Path("second"), "smoke")
    assert done.returncode == 0, done.stderr
    assert (machine.root / ".venv" / "kvgauge-stamp").exists()
    assert "-smoke-" in only_run(machine).name


def test_second_start_installs_nothing_and_takes_another_folder(machine: Machine) -> None:
    machine.add_python()
    machine.start()
    pips = machine.count("pip")
    assert machine.start().returncode == 0
    assert machine.count("pip") == pips > 0
    assert machine.count("venv") == 1
    assert len(list((machine.root / "results" / "runs").iterdir())) == 2


def test_python_of_the_environment_is_kept(machine: Machine) -> None:
    chosen = machine.add_python("my-python", "3.11")
    machine.start(KVGAUGE_PYTHON=str(chosen))
    machine.add_python("python3.13", "3.13")
    machine.start()
    assert machine.count("venv") == 1


def test_changed_pins_make_the_environment_again(machine: Machine) -> None:
    machine.add_python()
    machine.start()
    with (machine.root / "constraints" / "base.txt").open("a") as file:
        file.write("extra==1\n")
    assert machine.start().returncode == 0
    assert machine.count("venv") == 2


def test_half_made_environment_is_made_again(machine: Machine) -> None:
    machine.add_python()
    done = machine.start(PIP_SAYS="something went wrong")
    assert done.returncode == 2
    assert "something went wrong" in done.stderr
    leftover = machine.root / ".venv" / "leftover"
    leftover.touch()
    assert machine.start().returncode == 0
    assert not leftover.exists()
    assert machine.count("venv") == 2


def test_environment_of_another_hand_is_left_alone(machine: Machine) -> None:
    machine.add_python()
    theirs = machine.root / ".venv" / "precious"
    theirs.parent.mkdir()
    theirs.touch()
    done = machine.start()
    assert done.returncode == 2
    assert "was not made by this script" in done.stderr
    assert theirs.exists()
    assert machine.calls == []


@pytest.mark.parametrize(
    ("pip_says", "expected"),
    [
        ("Retrying: NewConnectionError('Name or service not known')", "cannot reach its package"),
        ("OSError: [Errno 28] No space left on device", "the disk ran full"),
    ],
)
def test_why_pip_failed(machine: Machine, pip_says: str, expected: str) -> None:
    machine.add_python()
    done = machine.start(PIP_SAYS=pip_says)
    assert done.returncode == 2
    assert pip_says in done.stderr
    assert expected in done.stderr.splitlines()[-1]


def test_two_starts_at_once_make_one_environment(machine: Machine) -> None:
    machine.add_python()
    starts = [
        subprocess.Popen(
            [machine.bin / "bash", machine.root / "run_all.sh"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=machine.env | {"VENV_SECONDS": "0.5"},
        )
        for _ in range(2)
    ]  # fmt: skip
    outputs = [start.communicate(timeout=30)[0] for start in starts]
    assert [start.returncode for start in starts] == [0, 0], outputs
    assert machine.count("venv") == 1
    assert sum("waiting for it" in output for output in outputs) == 1
    assert len(list((machine.root / "results" / "runs").iterdir())) == 2


@pytest.mark.parametrize(
    ("run_exit", "gate_exit", "expected"),
    [(0, 3, 0), (0, 4, 4), (0, 2, 2), (5, 0, 5), (5, 3, 5), (5, 4, 5)],
)
def test_exit_code_after_a_run(
    machine: Machine, run_exit: int, gate_exit: int, expected: int
) -> None:
    machine.add_python()
    done = machine.start(RUN_EXIT=str(run_exit), GATE_EXIT=str(gate_exit))
    assert done.returncode == expected
    assert machine.count("kvgauge report") == 1
    assert "report.html" in done.stdout
    assert "six lines" in done.stdout
    assert ("baseline make" in done.stdout) == (gate_exit == 3)


def test_a_report_that_fails_is_told_after_the_gate_ran(machine: Machine) -> None:
    machine.add_python()
    assert machine.start(REPORT_EXIT="2", GATE_EXIT="4").returncode == 2
    assert machine.count("kvgauge gate") == 1


@pytest.mark.parametrize("code", [1, 2, 130])
def test_a_run_that_fails_ends_there(machine: Machine, code: int) -> None:
    machine.add_python()
    assert machine.start(RUN_EXIT=str(code)).returncode == code
    assert machine.count("kvgauge report") == 0


def test_all_checks_run_whichever_fails(machine: Machine) -> None:
    machine.add_python()
    done = machine.start("test", "tests/unit", MYPY_EXIT="1")
    assert done.returncode == 1
    tools = [call for call in machine.calls if call.split()[0] not in ("venv", "pip", "compileall")]
    assert tools == [
        "ruff check .", "ruff format --check .", "mypy ", "lint-imports ", "pytest tests/unit",
    ]  # fmt: skip
    assert "3 passed in 0.01s" in done.stdout.splitlines()
    assert [line.split()[0] for line in done.stdout.splitlines()[-5:]] == [
        "ok", "ok", "FAILED", "ok", "ok",
    ]  # fmt: skip


def make_torch(folder: Path, version: str, cuda: str | None) -> Path:
    (folder / "torch").mkdir(parents=True)
    (folder / "torch" / "__init__.py").touch()
    (folder / "torch" / "version.py").write_text(f"__version__ = {version!r}\ncuda = {cuda!r}\n")
    info = folder / f"torch-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
    return folder


def test_cuda_torch_of_the_machine_is_adopted(machine: Machine, tmp_path: Path) -> None:
    machine.add_python()
    site = make_torch(tmp_path / "site", "2.12.0a0+image", "13.0")
    done = machine.start(PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    assert "venv -m venv --system-site-packages" in machine.calls[0]
    pins = (machine.root / ".venv" / "constraints.txt").read_text().splitlines()
    assert "torch==2.12.0a0+image" in pins
    assert not any(pin.startswith("numpy==") for pin in pins)
    assert "install --no-compile -e .[hf,report,dev] -c" in machine.calls[1]
    assert not any("cpu.txt" in call for call in machine.calls)


@pytest.mark.parametrize(("version", "cuda"), [("2.13.0+cpu", None), ("2.9.1", "12.8")])
def test_other_torch_is_not_adopted(
    machine: Machine, tmp_path: Path, version: str, cuda: str | None
) -> None:
    machine.add_python()
    done = machine.start(PYTHONPATH=str(make_torch(tmp_path / "site", version, cuda)))
    assert done.returncode == 0, done.stderr
    assert "--system-site-packages" not in machine.calls[0]


def test_python_with_a_cuda_torch_comes_first(machine: Machine, tmp_path: Path) -> None:
    site = make_torch(tmp_path / "site", "2.13.0", "13.0")
    machine.add_python("python3.13", "3.13")
    script = PYTHON.replace("@MINOR@", "3.11").replace(
        "#!/bin/sh", f"#!/bin/sh\nexport PYTHONPATH={site}"
    )
    machine.add("python3", script)
    done = machine.start()
    assert done.returncode == 0, done.stderr
    assert "Python 3.11.1, with its own torch 2.13.0" in done.stdout


def test_gpu_without_torch_gets_the_cuda_wheel(machine: Machine) -> None:
    machine.add_python()
    machine.add("nvidia-smi", "#!/bin/sh\necho 'GPU 0: stand-in'\n")
    done = machine.start(KVGAUGE_TORCH_INDEX="https://example.org/whl")
    assert done.returncode == 0, done.stderr
    pins = (machine.root / ".venv" / "constraints.txt").read_text()
    assert "\ntorch==" in pins
    assert "\ntriton==" not in pins
    assert machine.calls[1].endswith("--extra-index-url https://example.org/whl")
    assert "flash-attn" in machine.calls[3]


@pytest.mark.parametrize("arguments", [("fast",), ("smoke", "--run-dir", "x"), ("--run-dir=x",)])
def test_wrong_arguments(machine: Machine, arguments: tuple[str, ...]) -> None:
    done = machine.start(*arguments)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_help_needs_nothing(machine: Machine) -> None:
    done = machine.start("help")
    assert done.returncode == 0
    assert "usage: ./run_all.sh" in done.stdout


def test_script_is_executable() -> None:
    assert os.access(ROOT / "run_all.sh", os.X_OK)
