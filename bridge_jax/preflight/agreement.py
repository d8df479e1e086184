"""The tiny model computed in two ways: sampler and trainer, many devices and one, twice the same.

The error of an update is that of its change: |change - other change| / |other change|, Euclidean,
of theta, theta_hat and w, whichever is largest. The CPU computes in fp32, whatever the run's dtype:
it is the exact one, and XLA's CPU backend lacks some bfloat16 products.
"""

from __future__ import annotations

import jax
import numpy as np

from bridge_jax.distributed import arrays
from bridge_jax.preflight import subject as subjects
from bridge_jax.preflight.precision import relative
from bridge_jax.preflight.record import FAIL, NOTE, Record, graded, one_line
from bridge_jax.preflight.subject import Subject
from bridge_jax.training import build, rollouts, saved_state
from bridge_jax.training.build import Setup
from bridge_jax.types import Params, Sequences, TrainState

# log-probabilities of a token, by the coarser of compute dtype and cache dtype: mean and largest
# difference
LOGP = {"float32": (1e-5, 1e-3), "bfloat16": (3e-2, 0.5)}
# error of an update, by compute dtype
UPDATE = {"float32": 1e-3, "bfloat16": 0.1}
DETERMINISTIC = (
    "a run that is resumed will not repeat itself bit for bit; "
    "XLA_FLAGS=--xla_gpu_exclude_nondeterministic_ops=true makes it so"
)


def sampler_and_trainer(subject: Subject) -> Record:
    """Log-probabilities of sampled tokens: the sampler's, and the trainer's of the same tokens."""
    setup = subject.tiny()
    state = subjects.placed(setup, cpu_state(subject))
    samples = subjects.sampled(setup, state)
    again_BT = trained_logp(setup, state, samples.seqs)
    inside_BT = np.arange(subjects.MAX_NEW) < samples.seqs.length_B[:, None]
    return judge_logp(samples.logp_BT[inside_BT], again_BT[inside_BT], coarser(setup))


def trained_logp(setup: Setup, state: TrainState, seqs: Sequences) -> np.ndarray:
    """The trainer's log-probabilities [B,T] of these tokens, on the host."""
    layout = build.theta_shardings(setup)
    merge = jax.jit(lambda params: setup.method.policy(params, "theta"), out_shardings=layout)
    score = jax.jit(lambda phi, seqs: setup.policy.logp(phi, seqs, np.float32(1.0))[0])
    logp_BT = score(merge(state.params), rollouts.on_mesh(setup.mesh, seqs))
    return arrays.device_get("log-probabilities of the checks", logp_BT)


def coarser(setup: Setup) -> str:
    """The coarser of compute dtype and cache dtype."""
    used = setup.settings.model.dtype, setup.settings.rollout.cache_dtype
    return "bfloat16" if "bfloat16" in used else "float32"


def judge_logp(sampled: np.ndarray, trained: np.ndarray, dtype: str) -> Record:
    """Differences of the log-probabilities of the same tokens."""
    difference = np.abs(sampled - trained)
    mean, largest = float(difference.mean()), float(difference.max())
    text = (
        f"log-probabilities of {difference.size} tokens differ by {mean:.1e} nats, at most "
        f"{largest:.1e} ({dtype})"
    )
    good = mean < LOGP[dtype][0] and largest < LOGP[dtype][1]
    way_out = (
        "importance ratios would be wrong: set model.attention=xla, model.dtype=float32 to see"
    )
    return graded("sampler, trainer", text, good, way_out)


def cpu_device():
    """A CPU device of this process; ValueError where jax was started without CPUs."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        text = "no CPU device; add it, such as JAX_PLATFORMS=cuda,cpu"
        raise ValueError(f"{text} ({one_line(error)})") from error


def cpu_state(subject: Subject) -> TrainState:
    """The tiny model's state at the start, computed on the CPU, for all devices alike."""
    return subjects.initial_state(subjects.on_one(subject, cpu_device(), "float32"))


def updates(subject: Subject) -> list[Record]:
    """One update on all devices, once more, and beside one device and the CPU."""
    setup, before = subject.tiny(), cpu_state(subject)
    batch, update = subjects.batch_of(setup), subjects.updater(setup)
    found, metrics = update(before, batch)
    if bad := [key for key, value in metrics.items() if not np.all(np.isfinite(value))]:
        text = f"the update's {', '.join(bad[:3])}: no number"
        return [Record("update", FAIL, text, "set model.attention=xla; see the line attention")]
    again, _ = update(before, batch)
    records = [judge_repeated(found, again, setup.mesh.devices.flat[0].platform)]
    # a frozen base has the compute dtype's numbers on each of them
    frozen = setup.settings.train == "w"
    shown = saved_state.without_theta if frozen else lambda params: params
    for name, other_setup in others(subject).items():
        other, _ = subjects.updater(other_setup)(before, batch)
        changes = map(shown, (before.params, found, other))
        records.append(judge_update(name, *changes, setup.settings.model.dtype))
    return records


def others(subject: Subject) -> dict[str, Setup]:
    """Set-ups beside that of all devices, by their records' names; none on one CPU in fp32."""
    mesh, dtype = subject.setup.mesh, subject.setup.settings.model.dtype
    first, found = mesh.local_devices[0], {}
    if mesh.size > 1:
        found[f"update, 1 of {mesh.size}"] = subjects.on_one(subject, first)
    if first.platform != "cpu" or dtype != "float32":
        found["update, CPU"] = subjects.on_one(subject, cpu_device(), "float32")
    return found


def judge_repeated(found: Params, again: Params, platform: str) -> Record:
    """Two equal updates: bit for bit the same, or not."""
    equal = lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes()
    same = all(jax.tree.leaves(jax.tree.map(equal, found, again)))
    text = "equal bit for bit" if same else "not equal bit for bit"
    otherwise = NOTE if platform == "gpu" else FAIL
    way_out = DETERMINISTIC if platform == "gpu" else "test the machine's memory and processor"
    return graded("update, twice", text, same, way_out, otherwise)


def judge_update(name: str, before: Params, found: Params, other: Params, dtype: str) -> Record:
    """The change by an update beside that on another device."""
    parts = ("theta", "theta_hat", "w")
    errors = {
        part: change_error(*(getattr(params, part) for params in (before, found, other)))
        for part in parts
        if getattr(before, part) is not None
    }
    part = max(errors, key=lambda key: (not np.isfinite(errors[key]), errors[key]))
    text = f"the change of {part} differs by {errors[part]:.1e} ({dtype})"
    good = errors[part] < UPDATE[dtype]
    way_out = "set model.attention=xla, then mesh.tensor=1 and mesh.decode_tensor=1, to see which"
    return graded(name, text, good, way_out)


def change_error(before, found, other) -> float:
    """The relative error of a tree's change; 0 where neither changes it."""
    flat = lambda tree: np.concatenate(
        [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)]
    )
    before, found, other = flat(before), flat(found), flat(other)
    if np.array_equal(found, before) and np.array_equal(other, before):
        return 0.0
    return relative(found - before, other - before)
