"""A trace of one step by jax's profiler, for TensorBoard's profile plugin or xprof."""

from __future__ import annotations

import os

import jax

from bridge_jax.distributed import multihost


class Profile:
    """Traces step `step` of a run into its folder profile/; step 0: none.

    The trace reaches from the step's sampling to the end of its update; the start of the next
    step's sampling, which is queued behind it, is in it too.
    """

    def __init__(self, workdir: str, step: int):
        self.folder, self.step, self.running = os.path.join(workdir, "profile"), step, False

    def start(self, number: int) -> None:
        """Starts the trace if this is its step."""
        if number == self.step:
            jax.profiler.start_trace(self.folder)
            self.running = True

    def stop(self, number: int) -> None:
        """Writes the trace if this is its step, whose update is over."""
        if self.running and number == self.step:
            jax.profiler.stop_trace()
            self.running = False
            multihost.print_on_main(f"profile of step {number}: {self.folder}")
