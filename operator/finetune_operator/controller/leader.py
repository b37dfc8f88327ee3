"""Leader election with a Lease: of several replicas, only the leader reconciles.

The rules are those of client-go. A replica judges the Lease of another by the time since it saw it change, on its own
clock, so that clocks may differ. The leader must renew its Lease within two thirds of the duration, counted from the
start of the request, and otherwise its process ends: the last third is the time for requests that are on their way.
A timer of the kernel ends the process, also when the event loop is blocked, or after the process was stopped.
`kubernetes.aio.leaderelection` guarantees none of this (docs/decisions/0024-leader-election.md).
"""

import asyncio
import logging
import os
import signal
import socket
import time
import uuid
from collections.abc import Callable
from http import HTTPStatus
from typing import NoReturn

from finetune_api.clock import utc_now

from ..clusters.api_server import ApiServer
from ..clusters.kubernetes import path_of
from ..errors import ApiError, OperatorError, StaleError
from ..manifests import Manifest
from ..service_options import LeaseOptions

LOG = logging.getLogger(__name__)

_API_VERSION = "coordination.k8s.io/v1"
_RETRY_SECONDS = 1.0
"""Interval in which a standby reads the Lease, and a leader repeats a renewal that failed."""
_RENEWALS = 7.5
"""Renewals within the duration of the Lease, as in client-go: every two seconds of fifteen."""
_DEADLINE = 2 / 3
"""Share of the duration in which the leader must renew."""
_REQUEST = 1 / 3
"""Share of the duration that an attempt to write the Lease may take."""


class LeaderElection:
    """The part of one process in the election."""

    def __init__(
        self, server: ApiServer, options: LeaseOptions, lost: Callable[[str], None], arm: Callable[[float], None]
    ) -> None:
        """`lost` must end the process; it is called with the reason. `arm` must start a timer that does the same after
        this many seconds, unless it is started again; 0 stops it."""
        self._server, self._options, self._lost, self._arm = server, options, lost, arm
        self._collection = path_of(_API_VERSION, "leases", options.namespace)
        # A restarted container has the same host name, but its predecessor may still have a request on its way.
        self.identity = f"{socket.gethostname()}_{uuid.uuid4()}"
        self.is_leader = False
        self._written: Manifest | None = None
        """The Lease as this process wrote it last; None: it must be read."""
        self._observed: tuple[Manifest, float] | None = None
        """The last spec of another holder, and the monotonic time when it was seen first."""
        self._answered = float("-inf")
        self._error = ""
        """Error of the last request, if it failed."""
        self._has_ended = False

    def awaited(self) -> tuple[str, ...]:
        """Return why the process is not ready: it could not lead. A standby that can read the Lease is ready."""
        if time.monotonic() - self._answered <= self._options.seconds:
            return ()
        return (f"the Lease {self._name} cannot be used: {self._error or 'it has not been read yet'}",)

    async def acquire(self) -> None:
        """Wait until this process is the leader."""
        LOG.info("waiting for the Lease %s as %s", self._name, self.identity)
        while not await self._claim():
            await asyncio.sleep(_RETRY_SECONDS)
        self.is_leader = True
        LOG.info("leading with the Lease %s", self._name)

    async def hold(self) -> None:
        """Renew the Lease until cancelled."""
        has_renewed = True
        while True:
            await asyncio.sleep(self._options.seconds / _RENEWALS if has_renewed else _RETRY_SECONDS)
            has_renewed = await self._claim()

    async def release(self) -> None:
        """Release the Lease, so that a standby need not wait until it expires. Call it when nothing is written any
        more; it can be repeated."""
        if self._has_ended:
            return
        self._has_ended, self.is_leader = True, False
        try:
            async with asyncio.timeout(self._options.seconds * _REQUEST):
                while not await self._is_released():
                    self._written = None
        except (OperatorError, TimeoutError) as error:
            LOG.warning("the Lease %s cannot be released: %s", self._name, _text(error))
        self._arm(0)

    async def _is_released(self) -> bool:
        """Release the Lease if this process holds it. Returns False if a renewal that was cancelled has changed it."""
        lease = self._written or await self._read()
        if lease is None or _holder(lease["spec"]) != self.identity:
            return True
        spec = {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}
        try:
            await self._server.request("PUT", self._path, {**lease, "spec": spec})
        except StaleError:
            return False
        return True

    @property
    def _name(self) -> str:
        return f"{self._options.namespace}/{self._options.name}"

    @property
    def _path(self) -> str:
        return f"{self._collection}/{self._options.name}"

    async def _claim(self) -> bool:
        """Acquire or renew the Lease. Returns whether this process holds it."""
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._options.seconds * _REQUEST):
                holds = await self._write_if_free()
        except (OperatorError, TimeoutError) as error:
            if not self._error:
                LOG.warning("the Lease %s cannot be used, retrying: %s", self._name, _text(error))
            self._error = _text(error)
            return False
        self._answered, self._error = time.monotonic(), ""
        remaining = started + self._options.seconds * _DEADLINE - self._answered
        if not holds or remaining <= 0:
            return False
        self._arm(remaining)
        return True

    async def _write_if_free(self) -> bool:
        lease = self._written or await self._read()
        self._written = None  # until there is a response: a write without one may have been executed
        if not self._is_free(lease):
            if self.is_leader and lease is not None:
                self._lost(f"the Lease {self._name} is held by {_holder(lease['spec'])}")
            return False
        try:
            self._written = await self._write(lease)
        except ApiError as error:
            is_deleted = error.is_missing and lease is not None
            if error.status != HTTPStatus.CONFLICT and not is_deleted:
                raise
            # Another replica or a user has changed or deleted it. A leader must know who holds it now.
            return self.is_leader and await self._write_if_free()
        self._observed = None
        return True

    def _is_free(self, lease: Manifest | None) -> bool:
        """Whether nobody else holds the Lease. A deleted one is held until it would have expired."""
        now = time.monotonic()
        if lease is not None:
            if _holder(lease["spec"]) in ("", self.identity):
                return True
            if self._observed is None or self._observed[0] != lease["spec"]:
                self._observed = lease["spec"], now
        if self._observed is None:
            return True
        spec, seen_at = self._observed
        return now - seen_at > (spec.get("leaseDurationSeconds") or self._options.seconds)

    async def _read(self) -> Manifest | None:
        try:
            lease = await self._server.request("GET", self._path)
        except ApiError as error:
            if error.is_missing:
                return None
            raise
        return {**lease, "spec": lease.get("spec") or {}}

    async def _write(self, lease: Manifest | None) -> Manifest:
        """Write the Lease with this process as its holder. Raises StaleError if it has changed since it was read."""
        now = utc_now().isoformat(timespec="microseconds").replace("+00:00", "Z")
        before = {} if lease is None else lease["spec"]
        is_renewal = _holder(before) == self.identity
        spec = {
            **before,
            "holderIdentity": self.identity,
            "leaseDurationSeconds": self._options.seconds,
            "acquireTime": before.get("acquireTime", now) if is_renewal else now,
            "renewTime": now,
            "leaseTransitions": (before.get("leaseTransitions") or 0) + (0 if is_renewal or lease is None else 1),
        }
        if lease is not None:
            return await self._server.request("PUT", self._path, {**lease, "spec": spec})
        metadata = {"namespace": self._options.namespace, "name": self._options.name}
        created = {"apiVersion": _API_VERSION, "kind": "Lease", "metadata": metadata, "spec": spec}
        return await self._server.request("POST", self._collection, created)


def _holder(spec: Manifest) -> str:
    return spec.get("holderIdentity") or ""


def _text(error: Exception) -> str:
    return str(error) or "no response in time"


def end_process(reason: str) -> NoReturn:
    """End the process at once. Nothing may be written after the loss of a Lease, so nothing is waited for."""
    try:
        LOG.critical("%s; this process must not reconcile any more and ends", reason)
    finally:
        os._exit(1)


def make_timer(seconds: int) -> Callable[[float], None]:
    """Return the function that starts the timer of a Lease with this duration. Only for the main thread.

    If the timer expires while the process is stopped, the signal is delivered first when it continues. It has a
    handler, because the first process of a container ignores signals without one.
    """
    reason = f"the Lease was not renewed within {seconds * _DEADLINE:g} of {seconds} seconds"
    signal.signal(signal.SIGALRM, lambda *_: end_process(reason))

    def arm(wait: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, wait)

    return arm
