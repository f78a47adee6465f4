"""A trial on several processes: rank 0 in Tune's actor, its peers in actors of the same placement group.

All run the same trial and see the same statistics, so they decide alike without a word; only rank 0 records. A rank
without its peers waits in a collective, on a GPU where nothing can interrupt it. So a thread beside it hears of a peer
that is lost and ends the process; Tune then starts the trial again, and Ray ends the peers of a rank 0 that is gone.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import ray
import torch
from ray.util.placement_group import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from lrsweep.config import TrialSpec
from lrsweep.corpus import Corpus
from lrsweep.store import ResultStore
from lrsweep.sweep.local import TrialRunner, in_a_line, record_error
from lrsweep.train import Progress, Ranks

_SETTLE_S = 5.0
"""How long an error of rank 0 may turn out to be the loss of a peer, which is heard of within a second."""
_GRACE_S = 3 * _SETTLE_S
"""How long rank 0 has to meet the error that a peer has met: most errors are all ranks' own."""


class Peer:
    """A rank above 0."""

    def __init__(self, specs: dict[str, TrialSpec], corpora: dict[str, Corpus]) -> None:
        self._specs = specs
        self._corpora = corpora

    def join(self, rank: int, size: int, address: str, port: int, device: str) -> None:
        """Meet the other ranks."""
        self._runner = TrialRunner(self._corpora, None, Ranks.join(rank, size, address, port, torch.device(device)))

    def train(self, trial: str) -> None:
        """Train one trial to its end."""
        for _ in self._runner.train(self._specs[trial]):
            pass


class Lead:
    """Rank 0: starts its peers, and runs one trial after another with them as a ``TrialRunner`` does alone."""

    def __init__(self, size: int, specs: dict[str, TrialSpec], corpora: dict[str, Corpus], store: ResultStore) -> None:
        self._store = store
        self._over = threading.Event()
        self._unfinished: TrialSpec | None = None
        device = next(iter(specs.values())).device
        group = get_current_placement_group()
        assert group is not None
        peer: Any = ray.remote(num_cpus=1, num_gpus=1 if device == "cuda" else 0)(Peer)
        self._peers = {
            rank: peer.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group, rank)).remote(specs, corpora)
            for rank in range(1, size)
        }
        address, port = ray.util.get_node_ip_address(), _free_port()  # type: ignore[no-untyped-call]
        self._listen_to({rank: p.join.remote(rank, size, address, port, device) for rank, p in self._peers.items()})
        self._runner = TrialRunner(corpora, store, Ranks.join(0, size, address, port, torch.device(device)))

    def run(self, spec: TrialSpec) -> Iterator[Progress]:
        """Train ``spec``; an error of this rank ends it with the verdict ``error``, and these ranks with it."""
        if self._over.is_set():
            raise RuntimeError("an error parted the ranks; Tune starts others")
        self._unfinished = spec
        self._listen_to({rank: peer.train.remote(spec.trial) for rank, peer in self._peers.items()})
        try:
            for progress in self._runner.train(spec):
                if progress.row is not None:
                    self._unfinished = None
                yield progress
        except Exception as error:
            time.sleep(_SETTLE_S)
            self.dismiss()
            yield record_error(spec, self._store, in_a_line(error))

    def dismiss(self) -> None:
        """End the peers."""
        self._over.set()
        for peer in self._peers.values():
            ray.kill(peer)

    def _listen_to(self, calls: dict[int, Any]) -> None:
        threading.Thread(target=self._listen, args=(calls,), daemon=True).start()

    def _listen(self, calls: dict[int, Any]) -> None:
        """Wait until all peers' ``calls`` have returned; where one has failed, record why and end this process."""
        rank_of = {call: rank for rank, call in calls.items()}
        while rank_of:
            (call,), _ = ray.wait(list(rank_of), num_returns=1)
            rank = rank_of.pop(call)
            try:
                ray.get(call)
            except ray.exceptions.RayTaskError as error:
                reason, wait_s = in_a_line(error.cause), _GRACE_S
            except ray.exceptions.RayError as error:
                reason, wait_s = type(error).__name__, 0.0
            else:
                continue
            if not self._over.wait(wait_s):
                if self._unfinished is not None:
                    who = f"rank {rank} of {len(self._peers) + 1}, peer of process {os.getpid()}"
                    record_error(self._unfinished, self._store, f"{who}: {reason}")
                os._exit(1)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        port: int = free.getsockname()[1]
        return port
