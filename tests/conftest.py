"""Eight CPU devices and quick compilation for every test.

Read by XLA when the first array is made, which is after collection. The last two flags spare LLVM its work: a gradient of
a tiny model compiles in a fifth of the time. Tests of bit equality compile with `toys.AS_USERS` too.

NPROC is how many threads XLA keeps for its CPU devices, else one for each. A thread that waits in a collective is gone for
the others: with two collectives under way in each device's program, none may be left for the device that all wait for, and
XLA aborts the process.
"""

from __future__ import annotations

import os
import signal

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

# under nohup SIGHUP is ignored, by the programs that tests start too: here it has its usual meaning
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
