"""Eight CPU devices and quick compilation for every test.

Read by XLA when the first array is made, which is after collection. The last two flags spare LLVM
its work: a gradient of a tiny model compiles in a fifth of the time. Tests of bit equality compile
with `toys.AS_USERS` too.

NPROC is how many threads XLA keeps for its CPU devices, else one for each. A thread that waits in a
collective is gone for the others: with two collectives under way in each device's program, none may
be left for the device that all wait for, and XLA aborts the process.

What one test has compiled another one loads: all processes of a session share a folder of compiled
programs (jax's persistent cache), which is made for the session and removed after it. Tests of that
cache give it a folder of their own.
"""

from __future__ import annotations

import gc
import logging
import os
import pathlib
import shutil
import signal
import sys
import tempfile

import pytest

WANTED = (
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
)
given = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join(
    [given, *(flag for flag in WANTED if flag.split("=")[0] not in given)]
).strip()
os.environ.setdefault("NPROC", "32")

# Under nohup SIGHUP is ignored, and SIGINT in the background of a script; by the programs that tests
# start too. Here they have their usual meaning.
for number, usual in (
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGINT, signal.default_int_handler),
):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, usual)

# programs that compile faster than this are compiled again
KEPT_FROM_S = "0.1"


def pytest_configure(config):
    """Makes the folder of compiled programs, before jax is imported; xdist's workers inherit it."""
    if hasattr(config, "workerinput"):
        return
    folder = tempfile.mkdtemp(prefix="bridge_jax_compiled_")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = KEPT_FROM_S
    # With a largest size jax would look through the whole folder whenever a program is added, with
    # the folder locked. What is read half written is compiled.
    os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = "-1"


# Files that take minutes begin first, so that no worker is left alone with one at the end. Without
# --no-loadscope-reorder xdist begins with the files that have the most tests.
LONG_FILES = (
    "distributed/test_host_faults.py",
    "distributed/test_host_rare_faults.py",
    "distributed/test_host_runs.py",
    "distributed/test_joining.py",
    "experiments/test_evaluate_cli.py",
    "training/test_trainer.py",
    "methods/test_conformance.py",
    "experiments/test_train_cli.py",
    "training/test_end_of_step.py",
    "training/test_export.py",
    "training/test_measured_gain.py",
)


def pytest_collection_modifyitems(items):
    """Puts the tests of long files first, each file's in their own order."""
    place = {name: number for number, name in enumerate(LONG_FILES)}
    name = lambda item: "/".join(item.path.parts[-2:])
    items.sort(key=lambda item: place.get(name(item), len(place)))


# Objects that are made between two looks of the garbage collector, and how often it looks at older
# ones. Tracing makes many that live: by default 4% of the tests' time goes into looking at them.
GC_THRESHOLDS = 100_000, 20, 50


def pytest_collection_finish(session):
    """Spares the garbage collector what is imported by now, which never dies."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


# Linux gives a process 65,530 mappings of memory, each compiled program has several, and a process
# that gets no more of them dies without a word.
MOST_MAPPINGS = 15_000


@pytest.fixture(autouse=True, scope="module")
def programs_are_freed():
    """Frees the compiled programs that jax keeps, after a file that has left many of them."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if "jax" in sys.modules and maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPPINGS:
        sys.modules["jax"].clear_caches()
        gc.collect()


@pytest.fixture(autouse=True)
def sigpipe_is_ignored():
    """A test that leaves SIGPIPE at its default fails: the next closed pipe would end the
    worker.
    """
    yield
    handler = signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    assert handler == signal.SIG_IGN, "SIGPIPE has another handler after this test"


@pytest.fixture(autouse=True)
def no_handler_stays():
    """Removes the handlers that a command started in this process gave to the root logger.

    Such a handler writes to the test's captured stream, which is closed when the test ends.
    """
    before = set(logging.root.handlers)
    yield
    for handler in logging.root.handlers[:]:
        if handler not in before and not type(handler).__module__.startswith("_pytest"):
            logging.root.removeHandler(handler)
