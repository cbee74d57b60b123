"""Shards that another process computes, maybe on another machine."""

from skysense_core.errors import SkysenseError
from skysense_core.predict.job import Job
from skysense_core.predict.settings import PredictConfig
from skysense_core.predict.shards import Plan, Shards

_jobs: dict[str, Job] = {}
"""Of a worker process: the last job, with its model loaded."""


def compute_elsewhere(given: PredictConfig, plan: Plan, numbers: tuple[int, ...]) -> tuple[int, int, float]:
    """`Job.compute` of these shards in a worker process, which may be on another machine.

    Raises SkysenseError where the worker does not see the inputs, the model or the versions of the plan.
    """
    if plan.digest not in _jobs:
        job = Job(given)
        found = job.shard_plan()
        if found.digest != plan.digest:
            raise SkysenseError(f"a worker would compute something else: {plan.differences(found)}")
        _jobs.clear()
        _jobs[plan.digest] = job
    store = Shards(given.out, plan)
    left = [shard for shard in store.missing() if shard.number in numbers]
    return _jobs[plan.digest].compute(store, left)
