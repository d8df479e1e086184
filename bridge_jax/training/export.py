"""Write the newest checkpoint of a run as a Hugging Face folder, verified."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import jax

from bridge_jax.filesystem import files, hf_folder
from bridge_jax.models import lora, params
from bridge_jax.training import build, export_checks, interrupt, reopen
from bridge_jax.training.build import RunData, Setup
from bridge_jax.training.export_checks import BASE
from bridge_jax.types import Params, Tree

KINDS = ("merged", "base", "adapter")


def export(workdir: str, out: str, what: str = "merged") -> Path:
    """Export the newest checkpoint of a run; print what was checked. Returns the folder."""
    with interrupt.acknowledge_interrupts("ending", "nothing was written"):
        folder = export_run(workdir, out, what, print)
    if what == "adapter":
        base = lora.base_name(folder)
        moved = ": change it there when you move it" if Path(base).is_absolute() else ""
        print(f"its base is {base}, as adapter_config.json says{moved}")
    return folder


def export_run(workdir: str, out: str, what: str, note: Callable[[str], None]) -> Path:
    """Write the newest checkpoint of a run as `what`, a key of KINDS, into the new folder `out`.

    The folder gets its name only after it was verified. note: is called with a line about each
    check. ValueError where there is no run, no checkpoint or no adapter, or where `out` exists;
    RuntimeError if a check fails.
    """
    folder = Path(out).expanduser().absolute()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(
            f"--out={out} exists and is not an empty folder; give a new one, or remove it"
        )
    setup, data = reopen.rebuild(workdir)
    parts, step = reopen.restore_params(setup, workdir)
    if what == "adapter" and parts.w is None:
        raise ValueError(
            f"--what=adapter, but method {setup.settings.method_name!r} trains no adapter; "
            "allowed: "
            "merged or base, which are the same here. A run with --config.method.train=w has one"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    refusal = f"another process writes --out={out}; wait for it or stop it, or give a new folder"
    with files.scratch(folder, refusal) as scratch:
        extra, ready = Path(scratch) / "extra", Path(scratch) / "folder"
        data.tokenizer.save(extra)
        write_generation_config(setup, extra)
        also = tuple(sorted(extra.iterdir()))
        given = given_base(setup, parts.theta) if what == "adapter" else ""
        place = ready / BASE if what == "adapter" else ready
        if not given:
            write_model(setup, data, parts, what, place, also, note)
        if what == "adapter":
            base = given or str(folder / BASE)
            write_adapter(setup, parts.w, ready, base, also)
            source = hf_folder.locate(given) if given else place
            note(export_checks.verify_adapter(setup, data, parts, ready, base, source))
        os.replace(ready, folder)
    note(f"wrote {folder}: {what} of {workdir} after step {step}")
    return folder


def write_model(
    setup: Setup,
    data: RunData,
    parts: Params,
    what: str,
    folder: Path,
    also: tuple[Path, ...],
    note: Callable[[str], None],
) -> None:
    """Write the policy (`what` is "merged") or theta as a model folder, and verify it."""
    if what == "merged":
        phi = setup.method.policy(parts, "theta")
    else:
        phi = setup.policy.merge(parts.theta, None)
    params.save(setup.cfg, phi, folder, hf_config(setup), extra_files=also)
    for line in export_checks.verify(setup, data, phi, folder):
        note(line)


def given_base(setup: Setup, theta: Tree) -> str:
    """The folder or hub name of a frozen base, where its files have the numbers of theta; else "".

    Files in fp32 have others than a theta that was kept in bfloat16.
    """
    path = setup.settings.model.path
    if setup.settings.train != "w" or not path:
        return ""
    stored = params.load(setup.cfg, hf_folder.locate(path), build.theta_shardings(setup))
    pairs = zip(jax.tree.leaves(stored), jax.tree.leaves(theta))
    if not all(bool((one == other.astype(one.dtype)).all()) for one, other in pairs):
        return ""
    return str(Path(path).absolute()) if Path(path).is_dir() else path


def hf_config(setup: Setup) -> dict:
    """config.json: of the model folder, or model.arch with the ids of the run's tokenizer."""
    if setup.settings.model.path:
        return setup.hf
    return {"bos_token_id": None, "pad_token_id": None} | setup.hf | {"eos_token_id": eos(setup)}


def eos(setup: Setup) -> int | list[int]:
    """The ids that end a sequence, in the form of HF's files."""
    ids = setup.eos_ids
    return ids[0] if len(ids) == 1 else list(ids)


def write_generation_config(setup: Setup, folder: Path) -> None:
    """generation_config.json: of the model folder, with all ids at which our sampler stops."""
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


def write_adapter(setup: Setup, w: Tree, folder: Path, base: str, also: tuple[Path, ...]) -> None:
    """A PEFT folder that names the folder of its base; `also`: files to copy into it."""
    lora.save_peft(setup.cfg, setup.lora, w, str(folder), base)
    for file in also:
        shutil.copy(file, folder)
    # save_file makes a file that only its owner may read
    os.chmod(folder / "adapter_model.safetensors", 0o644)
