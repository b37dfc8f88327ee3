"""What processes and servers have used: CPU seconds, memory, calls."""

import os
import re
from collections import Counter
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'(\w+)="([^"]*)"')
WRITES = frozenset({"POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"})


def cpu_seconds(pid: int) -> float:
    """Of a process that runs."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def peak_mib(pid: int) -> float:
    """The most memory that it has held."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def all_cpu_seconds() -> Counter[str]:
    """Of this process and all that descend from it, by name: the whole cluster, the operator, the driver."""
    found: Counter[str] = Counter()
    waiting = [os.getpid()]
    while waiting:
        pid = waiting.pop()
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            found[_name(command, is_driver=pid == os.getpid())] += cpu_seconds(pid)
        except OSError:
            continue  # it has just ended
        waiting += map(int, children)
    return found


def _name(command: list[bytes], *, is_driver: bool) -> str:
    if is_driver:
        return "driver"
    return "operator" if b"finetune_operator" in command else Path(os.fsdecode(command[0])).name


def samples(text: str, name: str) -> list[tuple[dict[str, str], float]]:
    """Labels and value of every sample of a metric in Prometheus' text format."""
    found = []
    for line in text.splitlines():
        match = _SAMPLE.match(line) if line.startswith(name) else None
        if match and match[1] == name:
            found.append((dict(_LABEL.findall(match[2] or "")), float(match[3])))
    return found


def totals(text: str, name: str, label: str) -> Counter[str]:
    """Sum of a metric by one label."""
    found: Counter[str] = Counter()
    for labels, value in samples(text, name):
        found[labels[label]] += value  # type: ignore[assignment]  # a float; Counter adds and subtracts these too
    return found


def written(server_metrics: str, *, group: str | None = None) -> float:
    """Mutating requests that the API server has served, of one API group or of all."""
    return sum(
        value
        for labels, value in samples(server_metrics, "apiserver_request_total")
        if labels["verb"] in WRITES and group in (None, labels["group"])
    )
