"""Resource usage of processes and servers: CPU time, memory, requests."""

import os
import re
from collections import Counter
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'(\w+)="([^"]*)"')
WRITES = frozenset({"POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"})


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a running process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def peak_mib(pid: int) -> float:
    """Return the peak memory of a process."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def all_cpu_seconds() -> Counter[str]:
    """Return the CPU time of this process and its descendants by name: cluster, operator and driver."""
    found: Counter[str] = Counter()
    waiting = [os.getpid()]
    while waiting:
        pid = waiting.pop()
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            found[_name(command, is_driver=pid == os.getpid())] += cpu_seconds(pid)
        except OSError:
            continue  # the process has ended
        waiting += map(int, children)
    return found


def _name(command: list[bytes], *, is_driver: bool) -> str:
    if is_driver:
        return "driver"
    return "operator" if b"finetune_operator" in command else Path(os.fsdecode(command[0])).name


def samples(text: str, name: str) -> list[tuple[dict[str, str], float]]:
    """Return labels and value of all samples of a metric in the text format of Prometheus."""
    found = []
    for line in text.splitlines():
        match = _SAMPLE.match(line) if line.startswith(name) else None
        if match and match[1] == name:
            found.append((dict(_LABEL.findall(match[2] or "")), float(match[3])))
    return found


def totals(text: str, name: str, label: str) -> Counter[str]:
    """Return the sum of a metric by one label."""
    found: Counter[str] = Counter()
    for labels, value in samples(text, name):
        found[labels[label]] += value  # type: ignore[assignment]  # a float, which Counter can add and subtract
    return found


def written(server_metrics: str, *, group: str | None = None) -> float:
    """Return the number of mutating requests to the API server, for one API group or all."""
    return sum(
        value
        for labels, value in samples(server_metrics, "apiserver_request_total")
        if labels["verb"] in WRITES and group in (None, labels["group"])
    )
