"""Export: `python -m experiments.export --workdir=RUN --out=HF_DIR [--what=merged|base|adapter]`.

Writes the newest checkpoint of a run as a Hugging Face folder, in fp32: `merged` is the policy that was trained and
evaluated (theta + w, or theta where a method has no adapter), `base` theta alone, `adapter` w for PEFT. BRIDGE trains
theta too, so that its adapter does not belong on the model that the run began with: theta is written beside it, as
HF_DIR/base, and named in adapter_config.json. PEFT takes that name as a path: after the folder was moved, change it there.
The folder appears under its name only after it was read back bit for bit, after base and adapter, put together from
the files as PEFT does it, gave the logits of the policy on a prompt of the task, and, where torch is installed, after
transformers gave them too. Exit codes: 0 done, 2 it cannot be done, 5 the disk is full, 130 Ctrl-C.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from bridge_jax.filesystem import files
from experiments.cli import define_path, fail, fail_by, log_to_stderr, run_command

BASE = "base"  # in the folder of an adapter: the model that it belongs on
KINDS = ("merged", "base", "adapter")
TOLERANCE = 1e-4  # between our logits and those of transformers in fp32, times the largest logit where it is above 1


def export(workdir: str, out: str, what: str = "merged") -> Path:
    """Write the newest checkpoint of workdir as `what` into the new folder `out`, verified; returns the folder.

    ValueError where there is no setup, no checkpoint, no adapter, or `out` exists; RuntimeError if verification fails.
    """
    from bridge_jax.training import interrupt

    with interrupt.acknowledge_interrupts("ending", "nothing was written"):
        return write(workdir, out, what)


def write(workdir: str, out: str, what: str) -> Path:
    """export, without an answer to Ctrl-C."""
    from bridge_jax.models import params

    folder = Path(out).expanduser().absolute()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(
            f"--out={out} exists and is not an empty folder; give a new one, or remove it"
        )
    setup, data = rebuild(workdir)
    parts, step = restore(setup, workdir)
    if what == "adapter" and parts.w is None:
        raise ValueError(
            f"--what=adapter, but method {setup.settings.method_name!r} trains no adapter; allowed: "
            "merged or base, which are the same here"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    refusal = f"another process writes --out={out}; wait for it or stop it, or give a new folder"
    with files.scratch(folder, refusal) as scratch:
        extra, ready = Path(scratch) / "extra", Path(scratch) / "folder"
        data.tokenizer.save(extra)
        write_generation_config(setup, extra)
        also = tuple(sorted(extra.iterdir()))
        merged = what == "merged"
        phi = (
            setup.method.policy(parts, "theta") if merged else setup.policy.merge(parts.theta, None)
        )
        place = ready / BASE if what == "adapter" else ready
        params.save(setup.cfg, phi, place, hf_config(setup), extra_files=also)
        verify(setup, data, phi, place)
        del phi  # so that no more than two models are in memory at once beside theta
        if what == "adapter":
            write_adapter(setup, parts.w, ready, str(folder / BASE), also)
            verify_adapter(setup, data, parts, ready, str(folder / BASE))
        os.replace(ready, folder)
    print(f"wrote {folder}: {what} of {workdir} after step {step}")
    if what == "adapter":
        print(
            f"its base is {folder / BASE}, as adapter_config.json says: change it there when you move it"
        )
    return folder


def rebuild(workdir: str):
    """(Setup, RunData) of a run directory, in fp32, on whatever devices there are here."""
    from bridge_jax.config import renamed
    from bridge_jax.distributed import platforms
    from bridge_jax.filesystem import textfile
    from bridge_jax.training import build

    path = Path(workdir) / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{workdir!r} is not a run directory: it has no config.json; give the --workdir of a run"
        )
    try:
        config = ConfigDict(renamed.translated(json.loads(textfile.read(path))["config"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no config of a run ({error!r})") from None
    config.model.dtype = "float32"
    # the batch and the mesh of training need not fit the devices of this machine, and nothing here trains
    config.mesh = ConfigDict(dict(data=1, fsdp=-1, tensor=1))
    config.batch = ConfigDict(
        dict(
            prompts_per_step=len(platforms.devices()),
            samples_per_prompt=2,
            demos_per_step=1,
            microbatch_rows=2,
        )
    )
    config.rollout.calls = 1
    return build.build(config)


def restore(setup, workdir: str):
    """(Params, step) of the newest checkpoint; theta_hat and the optimizer states are not read and stay `...`."""
    from bridge_jax.rundir import checkpoint
    from bridge_jax.training import build

    wanted = build.abstract_state(setup)
    unread = lambda part: None if part is None else checkpoint.UNREAD
    wanted = wanted.replace(
        step=checkpoint.UNREAD,
        opt_state=checkpoint.UNREAD,
        ref=unread(wanted.ref),
        params=wanted.params.replace(theta_hat=unread(wanted.params.theta_hat)),
    )
    found = None
    if (Path(workdir) / "checkpoints").is_dir():
        with checkpoint.Checkpoints(workdir, read_only=True) as store:
            found = store.restore(wanted)
    if not found:
        raise ValueError(
            f"the run in {workdir!r} has no checkpoint: bring its checkpoints/ back if it was moved, or train it for "
            "longer, or save more often with --config.checkpoint.every"
        )
    state, meta = found
    return state.params, meta["step"]


def hf_config(setup) -> dict:
    """config.json: that of the model folder as it was, or model.arch with the special ids of the run's tokenizer."""
    if setup.settings.model.path:
        return setup.hf
    return {"bos_token_id": None, "pad_token_id": None} | setup.hf | {"eos_token_id": eos(setup)}


def eos(setup) -> int | list[int]:
    """The ids that end a sequence, as HF's files write them."""
    ids = setup.eos_ids
    return ids[0] if len(ids) == 1 else list(ids)


def write_generation_config(setup, folder: Path) -> None:
    """generation_config.json: what the model's folder says, with all ids at which our sampler stops."""
    from bridge_jax.filesystem import hf_folder

    given = {}
    if setup.settings.model.path:
        source = hf_folder.locate(setup.settings.model.path) / "generation_config.json"
        given = hf_folder.read_json(source) if source.is_file() else {}
    pad = given.get("pad_token_id", setup.hf.get("pad_token_id"))
    given |= {
        "eos_token_id": eos(setup),
        "pad_token_id": setup.eos_ids[0] if pad is None else pad,
    }
    (folder / "generation_config.json").write_text(json.dumps(given, indent=2) + "\n")


def write_adapter(setup, w, folder: Path, base: str, also: tuple[Path, ...]) -> None:
    """A PEFT folder that names the folder of its base, with the tokenizer beside it."""
    from bridge_jax.models import lora

    lora.save_peft(setup.cfg, setup.lora, w, str(folder), base)
    for file in also:
        shutil.copy(file, folder)
    # save_file lets nobody but its owner read
    os.chmod(folder / "adapter_model.safetensors", 0o644)


def verify_adapter(setup, data, parts, folder: Path, base: str) -> None:
    """RuntimeError unless the files say w bit for bit, name their base, and give the policy's logits together with it."""
    import jax
    import numpy as np

    from bridge_jax.filesystem import hf_folder
    from bridge_jax.models import lora, params
    from bridge_jax.training import build

    adapter, w, named = lora.load_peft(setup.cfg, folder)
    same = jax.tree.structure(w) == jax.tree.structure(parts.w) and all(
        np.array_equal(mine, theirs)
        for mine, theirs in zip(jax.tree.leaves(parts.w), jax.tree.leaves(w))
    )
    if not same or named != base:
        raise RuntimeError(f"the adapter reads back as another one, on the base {named!r}")
    ids = prompt_of(data)
    wanted = logits(setup.cfg, setup.method.policy(parts, "theta"), ids)
    cfg = params.read_config(hf_folder.hf_json(folder / BASE))
    theta = params.load(cfg, folder / BASE, build.theta_shardings(setup))
    compare("base and adapter", logits(cfg, lora.merge(adapter, theta, w), ids), wanted)


def verify(setup, data, phi, folder: Path) -> None:
    """RuntimeError unless the folder gives phi back bit for bit and, with torch, transformers the same logits."""
    import jax
    import numpy as np

    from bridge_jax.filesystem import hf_folder
    from bridge_jax.models import params
    from bridge_jax.training import build

    cfg = params.read_config(hf_folder.hf_json(folder))
    back = params.load(cfg, folder, build.theta_shardings(setup))
    pairs = zip(jax.tree_util.tree_leaves_with_path(phi), jax.tree.leaves(back))
    differ = [
        jax.tree_util.keystr(path)
        for (path, mine), theirs in pairs
        if not np.array_equal(mine, theirs)
    ]
    if differ:
        raise RuntimeError(f"what was written reads back as other numbers: {', '.join(differ)}")
    print("read back bit for bit")
    if importlib.util.find_spec("torch") is None:
        print("logits were not compared with transformers: torch is not installed")
        return
    ids = prompt_of(data)
    compare("transformers", transformers_logits(folder, ids), logits(cfg, phi, ids))


def prompt_of(data):
    """Tokens of a prompt of the task."""
    return next(iter(data.splits.values())).tokens[0]


def compare(whose: str, theirs, ours) -> None:
    """RuntimeError unless the logits [T, V] of the exported files are those of the policy in the run."""
    import numpy as np

    error = float(np.abs(ours - theirs).max())
    allowed = TOLERANCE * max(1.0, float(np.abs(theirs).max()))
    print(f"logits of a prompt of {len(ours)} tokens: at most {error:.2g} from those of {whose}")
    if not error <= allowed:
        raise RuntimeError(
            f"the logits differ by {error:.2g} from those of {whose}; allowed: {allowed:.2g}"
        )


def logits(cfg, phi, ids):
    """Our logits [len(ids), V], after each token of one sequence."""
    import jax
    import numpy as np

    from bridge_jax.models import layers, logprobs
    from bridge_jax.types import Sequences

    # the first token as the prompt; one filler at the end, so that the last real token has its logits too
    tokens = np.asarray([[*ids[1:], 0]], np.int32)
    seqs = Sequences(
        np.asarray([ids[:1]], np.int32),
        np.ones(1, np.int32),
        tokens,
        np.asarray([tokens.shape[1]], np.int32),
    )
    of = jax.jit(
        lambda phi: logprobs.logits_of(
            layers.forward(cfg, phi, seqs), layers.head_weights(cfg, phi)
        )
    )
    with jax.default_matmul_precision("highest"):  # fp32 on every machine
        return np.asarray(of(phi))[0]


def transformers_logits(folder: Path, ids):
    """The logits [len(ids), V] of the folder in transformers, fp32."""
    import numpy as np
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(folder), dtype=torch.float32
    ).eval()
    with torch.no_grad():
        return model(torch.tensor(np.asarray([ids]), dtype=torch.long)).logits[0].numpy()


def define_flags() -> None:
    """The flags of this command."""
    define_path("workdir", None, "the run directory", required=True)
    define_path("out", None, "the folder to make; it must not exist, or be empty", required=True)
    flags.DEFINE_enum("what", "merged", KINDS, "theta + w, theta alone, or w for PEFT beside theta")


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
    run_command(main)
