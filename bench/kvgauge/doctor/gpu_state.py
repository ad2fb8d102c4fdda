"""One GPU: what it is, and what would make its times jump."""

from __future__ import annotations

import os

from kvgauge.doctor.gpu import is_same, right_for, without_instance
from kvgauge.doctor.nvml import EXCLUSIVE, PROHIBITED, Card
from kvgauge.doctor.system import System, read_line
from kvgauge.doctor.torch_facts import Torch
from kvgauge.doctor.types import Check, Section, Unavailable, listed, section
from kvgauge.units import binary_bytes

_IDLE, _USER_DEFINED = 0x1, 0x2
# Bits of nvmlClocksEventReasons that slow a GPU down.
_SLOWED = {
    0x4: "power cap", 0x8: "hardware slowdown", 0x10: "sync boost", 0x20: "software thermal",
    0x40: "hardware thermal", 0x80: "power brake", 0x100: "display clocks",
}  # fmt: skip
_UNSEEN_BYTES = 2**30
_BUSY_PERCENT = 5


def card_section(system: System, card: Card, torch: Torch | Unavailable) -> Section:
    """Checks of one GPU; changes nothing on it."""
    return section(
        f"GPU {card.index}",
        ("card", lambda: identity(card)),
        ("torch", lambda: usable(card, torch)),
        ("memory", lambda: memory(card)),
        ("neighbours", lambda: neighbours(system, card)),
        ("clocks", lambda: clocks(card)),
        ("throttling", lambda: throttling(card)),
        ("power limit", lambda: power(card)),
        ("persistence", lambda: persistence(card)),
        ("ECC", lambda: ecc(card)),
        ("MIG", lambda: mig(card)),
        ("display", lambda: display(card)),
    )


def identity(card: Card) -> Check:
    """Name, compute capability, UUID."""
    capability = card.capability
    if not isinstance(capability, Unavailable):
        capability = "{}.{}".format(*capability)
    found = f"{card.name}, compute capability {capability}, {card.uuid}"
    return Check("card", "unavailable" if isinstance(card.name, Unavailable) else "ok", found)


def usable(card: Card, torch: Torch | Unavailable) -> Check:
    """Whether torch lists this card and computes on it."""
    if isinstance(torch, Unavailable) or not torch.gpus:
        return Check("torch", "unavailable", "torch can use no GPU: see above")
    gpu = next((gpu for gpu in torch.gpus if is_same(card, gpu)), None)
    if gpu is not None and gpu.error is not None:
        return Check(
            "torch", "fail", f"a sum on it fails: {gpu.error}", f"--gpu {gpu.index} cannot run",
            right_for(card, torch),
        )  # fmt: skip
    if gpu is not None:
        return Check("torch", "ok", f"computes on it, --gpu {gpu.index}")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return Check("torch", "unavailable", f"hidden by CUDA_VISIBLE_DEVICES={visible}")
    if without_instance(card) or card.compute_mode == PROHIBITED:
        return Check("torch", "unavailable", "closed to CUDA by its MIG or compute mode")
    return Check("torch", "warn", "torch does not list it", "", "see nvidia-smi -q and dmesg")


def memory(card: Card) -> Check:
    """Free and total."""
    if isinstance(card.memory, Unavailable):
        return Check("memory", "unavailable", card.memory.reason)
    free, total = card.memory.free, card.memory.total
    return Check("memory", "ok", f"{binary_bytes(free)} free of {binary_bytes(total)}")


def neighbours(system: System, card: Card) -> Check:
    """Other processes on the card; a container hides those outside it."""
    if isinstance(card.pids, Unavailable):
        return Check("neighbours", "unavailable", card.pids.reason)
    pids = [pid for pid in card.pids if pid != os.getpid()]
    right = "stop them, or choose another --gpu"
    means = "they take bandwidth and memory: times jump"
    if pids:
        names = [f"{pid} {read_line(system.proc / str(pid) / 'comm') or '?'}" for pid in pids[:4]]
        more = f" and {len(pids) - 4} more" if len(pids) > 4 else ""
        found = f"{len(pids)} other process(es): {listed(names)}{more}"
        return Check("neighbours", "warn", found, means, right)
    busy = 0 if isinstance(card.utilization, Unavailable) else card.utilization.gpu
    used = 0 if isinstance(card.memory, Unavailable) else card.memory.total - card.memory.free
    if busy > _BUSY_PERCENT or used > _UNSEEN_BYTES:
        found = f"no process is listed, but {busy}% busy and {binary_bytes(used)} in use"
        return Check(
            "neighbours", "warn", f"{found}: a container hides others' processes", means, right
        )
    return Check("neighbours", "ok", "none listed (a container would hide those outside it)")


def clocks(card: Card) -> Check:
    """Whether the clocks are held. NVML tells no locks: a clock that drops while idle is not held."""
    if isinstance(card.sm_mhz, Unavailable):
        return Check("clocks", "unavailable", card.sm_mhz.reason)
    found = f"SM {card.sm_mhz} of {_or_unknown(card.sm_max_mhz)} MHz"
    found += f", memory {_or_unknown(card.memory_mhz)} of {_or_unknown(card.memory_max_mhz)} MHz"
    reasons = 0 if isinstance(card.reasons, Unavailable) else card.reasons
    if reasons & _USER_DEFINED:
        return Check("clocks", "ok", f"{found}, held by a setting")
    sustained = _first_known(card.sm_default_mhz, card.sm_max_mhz)
    if reasons & _IDLE and isinstance(sustained, int) and card.sm_mhz >= sustained:
        return Check("clocks", "ok", f"{found}: does not drop while idle")
    sudo = "" if os.geteuid() == 0 else "sudo "
    lock = f"{sudo}nvidia-smi -i {card.index} -lgc {_or_unknown(sustained, 'MHZ')}"
    if not isinstance(card.memory_max_mhz, Unavailable):
        lock += f" && {sudo}nvidia-smi -i {card.index} -lmc {card.memory_max_mhz}"
    return Check(
        "clocks", "warn", f"{found}: clocks float", "a time depends on heat and on what ran before",
        f"{lock} (needs root on the host; -rgc and -rmc undo it)",
    )  # fmt: skip


def throttling(card: Card) -> Check:
    """What keeps the clocks down now, with the temperature."""
    if isinstance(card.reasons, Unavailable):
        return Check("throttling", "unavailable", card.reasons.reason)
    slowed = [name for bit, name in _SLOWED.items() if card.reasons & bit]
    temperature = f"{_or_unknown(card.temperature_c)} °C"
    if not slowed:
        return Check("throttling", "ok", f"none, {temperature}")
    return Check(
        "throttling", "warn", f"{listed(slowed)}, {temperature}", "times are those of a slowed GPU",
        "cooling, the power limit, or wait until it is idle and cool",
    )  # fmt: skip


def power(card: Card) -> Check:
    """The limit in force against the maker's."""
    limit, default = card.power_limit_mw, card.power_default_mw
    if isinstance(limit, Unavailable):
        return Check("power limit", "unavailable", limit.reason)
    found = f"{limit / 1000:.0f} W"
    if isinstance(default, Unavailable):
        return Check("power limit", "ok", f"{found}, default unknown")
    found += f", default {default / 1000:.0f} W"
    if limit == default:
        return Check("power limit", "ok", found)
    return Check(
        "power limit", "warn", found, "compares only with runs under the same limit",
        f"sudo nvidia-smi -i {card.index} -pl {default / 1000:.0f}",
    )  # fmt: skip


def persistence(card: Card) -> Check:
    """Whether the driver stays loaded between processes."""
    if isinstance(card.persistence, Unavailable):
        return Check("persistence", "unavailable", card.persistence.reason)
    if card.persistence:
        return Check("persistence", "ok", "on")
    return Check(
        "persistence", "warn", "off", "the driver lets go of the card between processes: clock "
        "settings are lost and each start is slow",
        f"sudo nvidia-smi -i {card.index} -pm 1",
    )  # fmt: skip


def ecc(card: Card) -> Check:
    """Error correction and the errors that it could not correct."""
    if isinstance(card.ecc, Unavailable):
        return Check("ECC", "unavailable", card.ecc.reason)
    on, later = card.ecc
    found = "on" if on else "off"
    if on != later:
        found += f", {'on' if later else 'off'} after a restart"
    now, ever = card.errors_since_start, card.errors_ever
    found += f"; uncorrected errors: {_or_unknown(now)} since the start, {_or_unknown(ever)} ever"
    failed_now = isinstance(now, int) and now > 0
    if failed_now or (isinstance(ever, int) and ever > 0):
        return Check(
            "ECC", "warn", found,
            "results may be wrong" if failed_now else "memory of this card has failed before",
            f"nvidia-smi -i {card.index} -q -d ECC,ROW_REMAPPER; reset or replace the card",
        )  # fmt: skip
    if not on:
        return Check(
            "ECC", "warn", found, "flipped bits go unseen; capacity and bandwidth differ from ECC on",
            f"sudo nvidia-smi -i {card.index} -e 1, then restart",
        )  # fmt: skip
    return Check("ECC", "ok", found)


def mig(card: Card) -> Check:
    """Whether the card is cut into instances."""
    if isinstance(card.mig, Unavailable):
        return Check("MIG", "unavailable", card.mig.reason)
    if without_instance(card):
        return Check(
            "MIG", "warn", "on, no instance made", "CUDA does not see this card",
            f"sudo nvidia-smi mig -i {card.index} -cgi PROFILE -C, or -i {card.index} -mig 0",
        )  # fmt: skip
    if card.mig[0]:
        return Check(
            "MIG", "ok", f"on, {_or_unknown(card.mig_instances)} instance(s)",
            "an instance has a share of bandwidth: compare it with its like alone",
        )  # fmt: skip
    return Check("MIG", "ok", "off")


def display(card: Card) -> Check:
    """A screen on the card, and a compute mode that keeps others or us out."""
    mode = {EXCLUSIVE: ", compute mode exclusive process", PROHIBITED: ", compute mode prohibited"}
    suffix = "" if isinstance(card.compute_mode, Unavailable) else mode.get(card.compute_mode, "")
    if isinstance(card.display, Unavailable):
        return Check("display", "unavailable", card.display.reason + suffix)
    if card.display:
        return Check(
            "display", "warn", f"attached and in use{suffix}", "drawing takes memory and time",
            "another --gpu, or stop the graphical session",
        )  # fmt: skip
    return Check("display", "ok", f"none{suffix}")


def _or_unknown(value: object, unknown: str = "unknown") -> str:
    return unknown if value is None or isinstance(value, Unavailable) else str(value)


def _first_known(*values: object) -> object:
    return next((value for value in values if not isinstance(value, Unavailable)), None)
