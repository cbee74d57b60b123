"""Work on a Dask cluster: independent pieces, retried elsewhere when a worker dies."""

import logging
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from skysense_core.errors import SkysenseError, UsageError
from skysense_core.progress import Bar

T, R = TypeVar("T"), TypeVar("R")

log = logging.getLogger(__name__)

LOCAL = "local"
RETRIES = 3
"""Times that a piece which fails is tried again; one that kills its worker so often is given up as well."""
WAIT = 30
"""Seconds to wait for a scheduler and its first worker."""
PIECES = 4
"""Pieces per worker: enough that the last ones end together, few enough that little is computed twice."""


def on_cluster(
    address: str, divide: Callable[[int], Sequence[T]], work: Callable[[T], R], *, workers: int | None = None
) -> Generator[R, None, None]:
    """The results of `work` for every piece, as they are finished.

    `address` is that of a scheduler (tcp://host:8786), or "local": a scheduler with `workers` processes (one per
    core) that starts and ends here. `divide` cuts the work into about as many pieces as it is told. What `work` is
    given and returns is pickled, and paths must mean the same files on every worker. Raises UsageError where Dask is
    not installed or nobody answers at the address, and the error of a piece that has failed too often.
    """
    try:
        from distributed import Client, LocalCluster, as_completed
        from distributed.scheduler import KilledWorker
    except ImportError:
        raise UsageError("--cluster needs Dask", fix="pip install 'skysense[dask]'") from None
    with ExitStack() as context:
        if address == LOCAL:
            count = workers or os.cpu_count() or 1
            context.enter_context(_same_environment())
            started = LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=":0")
            cluster = context.enter_context(started)
            client = context.enter_context(Client(cluster))
        else:
            try:
                client = context.enter_context(Client(address, timeout=WAIT))
            except (OSError, ValueError) as error:
                raise UsageError(
                    f"--cluster {address}: no scheduler answers: {error}", fix="For example tcp://host:8786, or local"
                ) from None
        try:
            client.wait_for_workers(1, timeout=WAIT)
        except TimeoutError:
            fix = f"Start some: dask worker {address} --nthreads 1"
            raise SkysenseError(f"--cluster {address}: no worker has come within {WAIT} s", fix=fix) from None
        known = len(client.scheduler_info(n_workers=-1)["workers"])
        log.info("%d workers; dashboard: %s", known, client.dashboard_link)
        pieces = divide(PIECES * known)
        futures = client.map(work, pieces, retries=RETRIES, pure=False)
        for future in Bar(as_completed(futures), total=len(futures), unit="piece"):
            try:
                yield future.result()
            except KilledWorker as error:
                raise SkysenseError(
                    f"a worker died {RETRIES + 1} times over one piece: {error}",
                    fix="Mostly it had too little memory: see --max-memory and the workers' logs.",
                ) from error


@contextmanager
def _same_environment() -> Iterator[None]:
    """Puts the environment variables back: Dask leaves what it sets for its workers, OMP_NUM_THREADS=1 among them, and
    a process that is started later would compute with other threads than this one."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
