"""Runs trials on Ray Tune. Ray only executes: the files that trials write are the record."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
from collections.abc import Sequence

from lrsweep.config import TrialSpec
from lrsweep.corpus import Corpus
from lrsweep.errors import UserError
from lrsweep.store import ResultStore
from lrsweep.sweep.local import OnProgress, record_error

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


def run_ray(
    specs: Sequence[TrialSpec],
    corpora: dict[str, Corpus],
    store: ResultStore,
    on_progress: OnProgress,
    *,
    jobs: int,
    device: str,
    address: str | None = None,
) -> None:
    """Run ``specs``, ``jobs`` at a time (on a GPU: on each GPU), and call ``on_progress`` in this process.

    A local Ray is started and stopped again, also when an exception (Ctrl-C among them) passes through.

    Raises:
        UserError: no cluster answers at ``address``.
    """
    os.environ.update(_QUIET)
    import ray
    from ray import tune

    from lrsweep.sweep.ray_actor import Actor, Reporter

    by_id = {spec.trial: spec for spec in specs}

    def on_lost(trial: str) -> None:
        reason = f"its worker was lost {_RETRIES + 1} times (out of memory, or killed)"
        on_progress(by_id[trial], record_error(by_id[trial], store, reason))

    reporter = Reporter(lambda trial, progress: on_progress(by_id[trial], progress), on_lost)
    for name in ("ray", "ray.tune", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    cpus = None if address else (jobs if device == "cpu" else max(jobs * _n_gpus(), os.cpu_count() or 1))
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address or "local",
            num_cpus=cpus,
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
            resources = {"cpu": 1.0} if device == "cpu" else {"cpu": 1.0, "gpu": 1 / jobs}
            trainable = tune.with_parameters(Actor, specs=by_id, corpora=corpora, root=store.root)
            tune.Tuner(
                tune.with_resources(trainable, resources),
                param_space={"trial": tune.grid_search(list(by_id))},
                tune_config=tune.TuneConfig(reuse_actors=True),
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
