"""Several processes, one mesh: JAX's multi-controller runtime, and who writes.

Every process runs the same commands on the same inputs, walks the same blocks in the same order, and holds its part of
the global arrays. Only the primary process writes (`storage` asks `is_primary()`); what only it can know, such as which
blocks are done, it hands to the others (`broadcast`). All of them must see the run directory, on a shared file system.

When a process is lost, the others end too, with an exit code that is neither 0 nor 2, so that a launcher may start all
of them again. If a collective fails first, that is 1, with a line of ours (`lost_process_line`). Otherwise JAX ends the
process within the heartbeat, by SIGABRT (134 in a shell) and with "Terminating process because the JAX distributed
service detected fatal errors": it has no public option for another end. So it does where not all come to `start`.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

from ntk_jax.errors import UserError

# Variables that hold the number of processes where a launcher starts several, for the environments JAX reads itself.
_LAUNCHERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
GRACE_SECONDS = 2.0
VISIBLE_SECONDS = 60.0  # as long as a network file system may remember that a file was not there
_GONE = re.compile(
    r"gloo|nccl|unavailable|heartbeat|coordination|connection (closed|reset|refused)|deadline_exceeded", re.I
)


@dataclass(frozen=True)
class Hosts:
    """Who this process is among those that were started."""

    index: int
    count: int
    coordinator: str


_here: Hosts | None = None


def detected() -> bool:
    """Whether a launcher that JAX understands (Slurm, Open MPI, a Cloud TPU or GKE slice) started several processes."""
    counts = [os.environ.get(name, "") for name in _LAUNCHERS]
    workers = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    return any(count.isdigit() and int(count) > 1 for count in counts) or len(workers) > 1


def start(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    wait: int = 300,
    heartbeat: int = 100,
) -> None:
    """Joins the other processes; before the first computation, for afterwards JAX has settled on its own devices.

    coordinator: host:port of process 0, the same everywhere; with `processes` and `process`. None: what JAX finds.
    wait: seconds until a process that does not come is given up. heartbeat: seconds until one that fell silent is.
    Raises UserError: the options are no cluster. Where not all processes come in time, this one ends.
    """
    global _here
    _check(coordinator, processes, process)
    expected = processes or next((int(os.environ[name]) for name in _LAUNCHERS if name in os.environ), None)
    named = f"{expected or 'the'} processes"
    place = coordinator or "found by JAX"
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # concerns CPUs only
    all_of_them = f"all of {named} (coordinator {place})"
    how = "start all of them with the same --coordinator and --processes and each with its own --process"
    # Said beforehand, because JAX aborts where the others do not come.
    print(f"ntk-jax: waiting up to {wait} s for {all_of_them}; {how}", file=sys.stderr, flush=True)
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            initialization_timeout=wait,
            heartbeat_timeout_seconds=heartbeat,
            cluster_detection_method="deactivate" if coordinator else None,
        )
    except (RuntimeError, ValueError) as error:
        end_now(f"could not join {all_of_them}: {str(error)[:160]}; {how}, or raise --wait")
    _here = Hosts(jax.process_index(), jax.process_count(), place)
    barrier("joined")


def refuse_unjoined() -> None:
    """Raises UserError where this process is one of several and does not know it: the hosts of a TPU slice find each
    other without `start`, and each would take itself for the one that writes."""
    if _here is None and jax.process_count() > 1:
        raise UserError(
            f"this is host {jax.process_index()} of a slice of {jax.process_count()}; start all of them with "
            f"--coordinator host:port --processes {jax.process_count()} --process i, as tpu/worker.sh does"
        )


def is_distributed() -> bool:
    """Whether other processes hold a part of the arrays."""
    return _here is not None and _here.count > 1


def is_primary() -> bool:
    """Whether this process is the one that writes the run directory."""
    return _here is None or _here.index == 0


def barrier(name: str) -> None:
    """Waits until all processes are here; what the primary process wrote before is there for all after."""
    if is_distributed():
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def connect_devices(mesh: jax.sharding.Mesh) -> None:
    """Lets the groups of devices that compute sums together find each other now. On CPUs they have 30 s for it at their
    first sum, less than what the compilation before it may take longer on one host than on another."""
    if not is_distributed() or jax.default_backend() != "cpu":
        return
    barrier("mesh")
    axes, spec = mesh.axis_names, jax.sharding.PartitionSpec
    ones = np.ones([mesh.shape[axis] for axis in axes], np.float32)
    x = place(ones, jax.sharding.NamedSharding(mesh, spec(*axes)))
    for group in (*[(axis,) for axis in axes], axes[:2], axes):
        gathered = jax.sharding.NamedSharding(mesh, spec(*[None if axis in group else axis for axis in axes]))
        jax.jit(jax.numpy.negative, out_shardings=gathered)(x).block_until_ready()


def broadcast(find: Callable[[], Any]) -> Any:
    """The JSON value that the primary process finds, on every process. Its UserError is raised on every process."""
    if not is_distributed():
        return find()
    answer: dict[str, Any] = {}
    if is_primary():
        try:
            answer = {"value": find()}
        except UserError as error:
            answer = {"error": str(error)}
    answer = json.loads(_broadcast_bytes(json.dumps(answer).encode()))
    if "error" in answer:
        raise UserError(answer["error"])
    return answer["value"]


def require_equal(what: str, value: str) -> None:
    """Raises UserError on a process whose value is not that of the primary process."""
    if broadcast(lambda: value) != value:
        assert _here is not None
        raise UserError(
            f"process {_here.index} has another {what} than process 0; give every process the same config, data and "
            "weights"
        )


def on_host(x: Any) -> np.ndarray:
    """The whole of an array, on every process. All processes must ask, in the same order."""
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def parts_on_host(x: Any, count: int = 16) -> Iterator[np.ndarray]:
    """An array in order along its first axis, in parts where several processes hold it: no host holds all of it."""
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated or not x.ndim:
        yield on_host(x)
        return
    size = -(-x.shape[0] // count)
    for start in range(0, x.shape[0], size):
        rows = min(size, x.shape[0] - start)
        yield on_host(jax.lax.dynamic_slice_in_dim(x, start, rows))


def wait_until_visible(path: Path) -> None:
    """Raises UserError where a file that the primary process has written does not become visible."""
    until = time.monotonic() + VISIBLE_SECONDS
    while not is_primary() and not path.exists():
        if time.monotonic() > until:
            assert _here is not None
            raise UserError(
                f"process {_here.index} does not see {path}, which process 0 has written; the run directory must "
                "be on a file system that all processes share"
            )
        time.sleep(0.1)


def place(tree: Any, shardings: Any) -> Any:
    """Puts host values, the same on every process, where `shardings` (one, or a tree of them) say."""
    if not is_distributed():
        return jax.device_put(tree, shardings)

    def put(leaf: Any, sharding: jax.sharding.Sharding) -> jax.Array:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        # device_put would first compare the value over all processes, with a collective for every leaf.
        value = np.asarray(leaf)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    if isinstance(shardings, jax.sharding.Sharding):
        return jax.tree.map(lambda leaf: put(leaf, shardings), tree)
    return jax.tree.map(put, tree, shardings)


def lost_process_line(error: BaseException) -> str | None:
    """The line for an error that another process's end caused; None for any other error."""
    # At its first use of a program JAX raises what the runtime says as a ValueError, known by its status word.
    of_runtime = isinstance(error, jax.errors.JaxRuntimeError) or (
        isinstance(error, ValueError) and re.match(r"[A-Z_]+: ", str(error))
    )
    if not is_distributed() or not of_runtime or not _GONE.search(str(error)):
        return None
    assert _here is not None
    return (
        f"process {_here.index} of {_here.count}: another process of this run ended or cannot be reached "
        f"(coordinator {_here.coordinator}); start all {_here.count} again, what is written is kept"
    )


def end_now(message: str) -> NoReturn:
    """Prints the line and ends this process, from whatever thread: JAX's own end would wait for the others. The code is
    1, not 2: the user has made no mistake, and a launcher may start the processes again."""
    print(f"ntk-jax: error: {message}", file=sys.stderr, flush=True)
    exit_now(1)


def exit_now(code: int) -> NoReturn:
    """Ends this process without waiting for the others, who notice."""
    sys.stdout.flush()
    sys.stderr.flush()
    if _here is not None and _here.index == 0:
        time.sleep(GRACE_SECONDS)  # with the coordinator the others end: let them say first what they have to say
    os._exit(code)


def _check(coordinator: str | None, processes: int | None, process: int | None) -> None:
    if coordinator is None:
        if processes is not None or process is not None:
            raise UserError("--processes and --process need --coordinator host:port, the address of process 0")
        return
    if not re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^:\s]+):\d+", coordinator):
        raise UserError(f"--coordinator {coordinator}: give host:port, the address of process 0")
    if processes is None or process is None or not 0 <= process < processes:
        raise UserError(
            "--coordinator needs --processes n and --process i with i from 0 to n-1, "
            f"got --processes {processes} and --process {process}"
        )


def _broadcast_bytes(data: bytes) -> bytes:
    from jax.experimental import multihost_utils

    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    buffer = np.zeros(-(-size // 1024) * 1024, np.uint8)  # few shapes, few compilations
    if is_primary():
        buffer[:size] = np.frombuffer(data, np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(buffer))[:size].astype(np.uint8))
