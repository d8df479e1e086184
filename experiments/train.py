"""Train: `python -m experiments.train --config=configs/NAME.py[:METHOD] --workdir=DIR [--config.a.b=value ...]`.

Running the same command again goes on where the run directory stands. --stop_at=K ends cleanly after step K.
"""
from __future__ import annotations

import logging
import os
import sys

from absl import app, flags
from ml_collections import config_flags

from bridge_jax import settings

CONFIG = config_flags.DEFINE_config_file("config", None, "a file of configs/, with :METHOD behind it", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "the run directory, made if need be")
STOP_AT = flags.DEFINE_integer("stop_at", None, "end cleanly after this step", lower_bound=1)
FORCE_CONFIG = flags.DEFINE_bool("force_config", False, "go on with a run directory although its config differs")
flags.mark_flags_as_required(["config", "workdir"])


def use_compilation_cache() -> None:
    """Keep compiled programs between runs, unless JAX_COMPILATION_CACHE_DIR says where (or, empty, that they are not kept)."""
    import jax
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/bridge_jax/xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def main(argv: list[str]) -> None:
    """Train, and turn user errors into one line and exit code 2; a run that diverged exits with 3."""
    if argv[1:]:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; settings are given as --config.a.b=value")
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    use_compilation_cache()
    from bridge_jax import train
    from configs.base import get_config
    try:
        end = train.train(CONFIG.value, WORKDIR.value, STOP_AT.value, FORCE_CONFIG.value, defaults=get_config())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except train.Diverged as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(3)
    print("  ".join(f"{key} {value:.4g}" for key, value in end.items()
                    if key in ("step", "reward/mean", "eval/held_out_accuracy", "eval/held_out_stderr", "time/train_s")))


def unknown_flag(error: Exception) -> str:
    """The message for a mistyped --config.a.b: the nearest key of the same config."""
    return str(error)


if __name__ == "__main__":
    app.run(main)
