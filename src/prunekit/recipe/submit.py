"""Sends a recipe to a SLURM cluster, by submitit; sent again, it carries on."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunekit.errors import InputError
from prunekit.recipe.recipe import parse_changes, read_recipe

JOBS = "jobs"  # in the run's folder: what was sent, and what it printed


def submit(
    recipe: str,
    run: Path,
    *,
    changes: Sequence[str] = (),
    cluster: str = "slurm",
    settings: Mapping[str, Any] | None = None,
) -> str:
    """Send `prunekit run RECIPE -o RUN` as a job; its id. The recipe is read first.

    `cluster` is slurm, or local: this machine, to try it. `settings` are submitit's parameters:
    timeout_min, gpus_per_node, slurm_partition, ... On the nodes nothing is fetched: see
    `prunekit fetch`. Raises InputError if submitit, or the cluster, is not there.
    """
    read_recipe(recipe, parse_changes(changes))
    try:
        import submitit
        from submitit.helpers import CommandFunction
    except ImportError:
        raise InputError("submit needs submitit; pip install 'prunekit[slurm]'") from None
    command = [sys.executable, "-m", "prunekit", "run", recipe, *changes, "-o", str(run)]
    (run / JOBS).mkdir(parents=True, exist_ok=True)
    try:
        executor = submitit.AutoExecutor(run / JOBS, cluster=cluster)
        executor.update_parameters(name=f"prunekit-{Path(recipe).stem}", **(settings or {}))
        job = executor.submit(CommandFunction(command, env={"HF_HUB_OFFLINE": "1"}))
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{cluster} does not take the job: {reason}") from None
    return str(job.job_id)
