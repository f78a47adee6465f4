"""Runs trials on Ray Tune. Ray only executes: the files that trials write are the record."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lrsweep.config import TrialSpec
from lrsweep.corpus import Corpus
from lrsweep.errors import UserError
from lrsweep.store import ResultStore
from lrsweep.sweep.local import OnProgress, record_error
from lrsweep.sweep.search import FrontierSearch

# Read when Ray is imported: no result loggers, no banner, no usage report, no handler that swallows Ctrl-C, no change
# of the working directory, and no copy of the experiment's state every few seconds.
_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
_RETRIES = 2
"""How often a trial whose worker was lost is started again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """Where trials run, and how many at a time."""

    device: str
    """``cpu`` or ``cuda``."""
    jobs: int = 1
    """Trials at a time; on a GPU, on each."""
    together: int = 1
    """Processes that train one trial together, with a GPU or a core each."""
    address: str | None = None
    """The cluster; None: a local Ray."""

    @property
    def gpu_share(self) -> float | None:
        """Part of a GPU that each process may take; None on a CPU."""
        return None if self.device == "cpu" else 1 / self.jobs

    def resources(self) -> Any:
        """What Tune reserves for one trial: the processes of one as near to each other as the cluster has room."""
        from ray import tune

        if self.together == 1:
            return {"cpu": 1.0} if self.gpu_share is None else {"cpu": 1.0, "gpu": self.gpu_share}
        each = {"CPU": 1.0} if self.device == "cpu" else {"CPU": 1.0, "GPU": 1.0}
        return tune.PlacementGroupFactory([each] * self.together, strategy="PACK")

    def at_once(self, resources: Mapping[str, float]) -> int:
        """Trials that find room at the same time in a cluster of ``resources``, by Ray's names; at least one."""
        whole = resources.get("CPU", 0) if self.device == "cpu" else resources.get("GPU", 0) * self.jobs
        return max(1, int(whole) // self.together)

    def local_cpus(self) -> int:
        """CPUs that a local Ray is told of."""
        if self.device == "cpu":
            return self.jobs * self.together
        return max(self.jobs * _n_gpus(), os.cpu_count() or 1)


def run_ray(
    specs: Sequence[TrialSpec],
    corpora: dict[str, Corpus],
    store: ResultStore,
    on_progress: OnProgress,
    workers: Workers,
    search: FrontierSearch | None = None,
) -> None:
    """Run ``specs`` on ``workers``, and call ``on_progress`` in this process; with ``search`` only what it asks for.

    A local Ray is started and stopped again, also when an exception (Ctrl-C among them) passes through.

    Raises:
        UserError: no cluster answers at the address.
    """
    os.environ.update(_QUIET)
    import ray
    from ray import tune

    from lrsweep.sweep.ray_actor import Actor, Reporter, Searcher

    by_id = {spec.trial: spec for spec in specs}
    address, before = workers.address, store.rows()

    def on_lost(trial: str) -> None:
        why = "out of memory, or killed"
        if (row := store.rows().get(trial)) and not (trial in before and before[trial].reason == row.reason):
            why = row.reason  # a rank said whom it lost before it went
        reason = f"its worker was lost {_RETRIES + 1} times ({why})"
        on_progress(by_id[trial], record_error(by_id[trial], store, reason))

    reporter = Reporter(lambda trial, progress: on_progress(by_id[trial], progress), on_lost)
    for name in ("ray", "ray.tune", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address or "local",
            num_cpus=None if address else workers.local_cpus(),
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=None if address else 256 << 20,
        )
    except ConnectionError as error:
        raise UserError(f"--ray-address {address}: {str(error).splitlines()[0]}") from None
    try:
        # Ray's core has put a handler of its own in place, which aborts.
        signal.signal(signal.SIGTERM, on_terminate)
        with tempfile.TemporaryDirectory(prefix="lrsweep-ray-") as storage:
            trainable = tune.with_parameters(
                Actor,
                specs=by_id,
                corpora=corpora,
                root=store.root,
                together=workers.together,
                gpu_share=workers.gpu_share,
            )
            at_once = workers.at_once(ray.cluster_resources())  # type: ignore[no-untyped-call]
            tune.Tuner(
                tune.with_resources(trainable, workers.resources()),
                param_space={} if search else {"trial": tune.grid_search(list(by_id))},
                tune_config=tune.TuneConfig(
                    reuse_actors=True,
                    search_alg=Searcher(search, at_once) if search else None,
                    num_samples=-1 if search else 1,
                ),
                run_config=tune.RunConfig(
                    storage_path=storage,
                    verbose=0,
                    callbacks=[reporter],
                    failure_config=tune.FailureConfig(max_failures=_RETRIES),
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                ),
            ).fit()
    finally:
        ray.shutdown()


def _n_gpus() -> int:
    import torch

    return torch.cuda.device_count()
