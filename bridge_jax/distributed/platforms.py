"""The devices of this machine, or an error that names the platforms that can be started.

Where JAX_PLATFORMS names a platform that jax cannot start, jax raises an AssertionError or a
RuntimeError of its backends. So whatever looks at devices first calls `devices` here.
"""

from __future__ import annotations

import os
import subprocess
import sys

import jax

SECONDS = 60.0  # for a look at which platforms there are


def devices() -> list:
    """jax.devices() of all processes; ValueError where the wanted platform cannot be started."""
    try:
        return jax.devices()
    except (AssertionError, RuntimeError) as error:
        raise ValueError(missing(error)) from error


def missing(error: Exception) -> str:
    """What to tell of an error of jax's backends."""
    names = {
        "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS") or jax.config.jax_platforms,
        # the older way
        "JAX_PLATFORM_NAME": os.environ.get("JAX_PLATFORM_NAME", ""),
    }
    asked = ", ".join(f"{name}={value!r}" for name, value in names.items() if value)
    way_out = "(set JAX_PLATFORMS='' to automatically choose an available backend)"
    reason = " ".join(str(error).replace(way_out, "").split()).rstrip(".")
    here = startable()
    return (
        f"{asked or 'JAX_PLATFORMS is not set'}: jax cannot start the devices"
        f"{f' ({reason})' if reason else ', there is no plugin for them'}. Platforms that can be "
        f"started here: {', '.join(here) or 'none'}. "
        f"Set JAX_PLATFORMS={here[0] if here else 'cpu'}, or unset it, or install what is missing: "
        'pip install "jax[cuda13]" for NVIDIA GPUs, "jax[tpu]" for TPUs'
    )


def startable() -> list[str]:
    """Names of the platforms that jax can start here.

    Found in a process of its own, since this one may be bound to a platform already.
    """
    code = "import jax.extend.backend as backend; print(*backend.backends())"
    ignored = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")
    environment = {key: value for key, value in os.environ.items() if key not in ignored}
    environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return sorted(done.stdout.split()) if done.returncode == 0 else []
