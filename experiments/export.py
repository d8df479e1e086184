"""Export a run for transformers, PEFT and vLLM: `python -m experiments.export --workdir=RUN
--out=HF_DIR [--what=merged|base|adapter]`.

Writes the newest checkpoint of a run as a Hugging Face folder, in fp32. `merged` is the policy that
was trained and evaluated (theta + w, or theta where a method has no adapter), `base` theta alone,
`adapter` w for PEFT. BRIDGE trains theta too, so that its adapter does not belong to the model that
the run began with: theta is written as HF_DIR/base and named in adapter_config.json. PEFT takes
that name as a path: change it there after the folder was moved.

The folder gets its name only after three checks: it is read back bit for bit; where torch is
installed, transformers gives the logits of the policy on a prompt of the task; and base and
adapter, put together from the files as PEFT does it, give them too.

Exit codes: 0 done; 2 it cannot be done; 5 the disk is full; 130 Ctrl-C.
"""

from __future__ import annotations

from absl import flags

from bridge_jax.training.export import KINDS, export
from experiments.cli import define_path, fail, fail_by, log_to_stderr, run_command

EXAMPLE = "python -m experiments.export --workdir=runs/one --out=models_local/one"


def define_flags() -> None:
    """The flags of this command."""
    define_path("workdir", None, "the run directory", required=True)
    define_path("out", None, "the folder to make; it must not exist, or be empty", required=True)
    flags.DEFINE_enum("what", "merged", KINDS, "theta + w, theta alone, or w for PEFT and theta")


def main(argv: list[str]) -> None:
    """Export, and turn errors into one line and exit code 2."""
    if argv[1:]:
        fail(f"unexpected arguments {argv[1:]}; the flags are --workdir, --out and --what")
    log_to_stderr()
    try:
        export(flags.FLAGS.workdir, flags.FLAGS.out, flags.FLAGS.what)
    except (ValueError, OSError, RuntimeError) as error:
        fail_by(error)


if __name__ == "__main__":
    define_flags()
    run_command(main, EXAMPLE)
