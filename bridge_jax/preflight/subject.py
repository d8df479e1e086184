"""What is checked: a config's set-up, and a tiny model of the same family on the same devices.

The tiny model has the run's family, heads, dtypes, form of attention, method and mesh, but two
narrow layers. Its weights are larger than usual ones, so that attention is sharp and logits differ;
its optimizer has a large eps, so that a first step is in proportion to the gradient. With Adam's
usual eps it would be its sign, and entries near zero would differ between devices by twice a step.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from bridge_jax.distributed import arrays, platforms
from bridge_jax.sampling import sampler
from bridge_jax.training import build, programs, rollouts
from bridge_jax.training.build import Setup
from bridge_jax.types import Batch, BatchSpec, Rollouts, Sequences, TrainState, Tree

# sizes of the tiny model
WIDTH, HEAD_DIM, LAYERS, MLP, VOCABULARY = 64, 16, 2, 128, 512
# odd lengths, prompts and completions; samples of a prompt; rows of a micro-batch on a device
BUCKET, MAX_NEW, SAMPLES, ROWS = 13, 11, 4, 4
STEADY = dict(
    learning_rate=1.0,
    schedule="constant",
    warmup_steps=0,
    decay_steps=0,
    eps=1.0,
    weight_decay=0.0,
)


class Subject(NamedTuple):
    """What the checks look at."""

    config: ConfigDict
    setup: Setup  # of the config, on all devices
    small: ConfigDict  # the tiny model's config, for all devices
    folder: str  # in the run directory; removed after the checks

    def tiny(self) -> Setup:
        """The tiny model on all devices."""
        return build.make_setup(self.small, list(self.setup.mesh.devices.flat))


def make(config: ConfigDict, folder: str, devices=None) -> Subject:
    """The subject of a config. ValueError where the config is invalid."""
    devices = platforms.devices() if devices is None else devices
    # a config that states the architecture needs no model hub
    read = build.read_architecture if config.model.get("arch") else build.read_model
    setup = build.make_setup(config, devices, read)
    return Subject(config, setup, shrink(config, setup), folder)


def shrink(config: ConfigDict, setup: Setup) -> ConfigDict:
    """The config of the tiny model, for the devices of this set-up."""
    fsdp, tensor = setup.mesh.shape["fsdp"], setup.mesh.shape["tensor"]
    small = ConfigDict(config.to_dict())
    small.model.path = ""
    small.model.arch = ConfigDict(tiny_arch(setup.hf, fsdp, tensor))
    small.model.lora_rank = min(8, setup.lora.rank)
    small.data.update(dict(buckets=(BUCKET,), max_demo=0))
    small.rollout.update(dict(max_new=MAX_NEW, calls=1))
    prompts = 4 * setup.mesh.size
    small.batch.update(
        dict(
            prompts_per_step=prompts,
            demos_per_step=prompts,
            samples_per_prompt=SAMPLES,
            microbatch_rows=ROWS,
        )
    )
    small.eval.update(dict(every=0, measured_gain=False))
    # parts of the run's own batch, which the small one may not have
    small.method.bridge.sft_microbatches = 0
    small.method.bridge.shadow.share = 1.0
    for recipe in small.optim.values():
        recipe.update(STEADY)
    return small


def tiny_arch(hf: dict, fsdp: int, tensor: int) -> dict:
    """HF's config.json of the tiny model; its sizes divide over a mesh with these axes."""
    width = math.lcm(WIDTH, fsdp)
    arch = copy.deepcopy(hf) | dict(
        hidden_size=width,
        head_dim=HEAD_DIM,
        num_hidden_layers=LAYERS,
        intermediate_size=math.lcm(MLP, tensor),
        vocab_size=VOCABULARY,
        initializer_range=0.8 / width**0.5,
        eos_token_id=1,
    )
    if isinstance(arch.get("layer_types"), list):
        arch["layer_types"] = arch["layer_types"][:LAYERS]
    return arch


def on_one(subject: Subject, device, dtype: str = "") -> Setup:
    """The tiny model on one device; dtype: of the computation, "" for the run's."""
    alone = ConfigDict(subject.small.to_dict())
    alone.mesh.update(dict(data=1, fsdp=1, tensor=1, decode_tensor=0))
    alone.model.dtype = dtype or alone.model.dtype
    return build.make_setup(alone, [device])


def spec_of(setup: Setup) -> BatchSpec:
    """The kind of step that reads the most."""
    return max(setup.method.step_kinds, key=lambda spec: (len(spec.sampled_by), spec.demos))


def initial_state(setup: Setup) -> TrainState:
    """The training state at the start, from the seed, as host arrays; setup: on one device."""
    place = jax.tree.map(lambda leaf: leaf.sharding, build.abstract_state(setup))
    init = jax.jit(setup.method.init, out_shardings=place)
    # the key's own device would otherwise be the default one
    with jax.default_device(setup.mesh.devices.flat[0]):
        key = jax.random.key(setup.settings.seed)
        return jax.device_get(init(build.initial_theta(setup), key))


def placed(setup: Setup, state: TrainState) -> TrainState:
    """Host arrays of a state on the devices of the set-up, in its dtypes."""
    shapes = build.abstract_state(setup)
    layout = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    typed = jax.tree.map(lambda leaf, like: np.asarray(leaf).astype(like.dtype), state, shapes)
    return arrays.place(typed, layout)


def random_rows(prompts: int, rows: int, seed: int = 0) -> Sequences:
    """Prompts and completions of uneven lengths, the first of each of full length."""
    rng = np.random.default_rng(seed)
    tokens = lambda *shape: rng.integers(2, VOCABULARY, shape, dtype=np.int32)
    prompt_len = rng.integers(1, BUCKET + 1, prompts, dtype=np.int32)
    length = rng.integers(1, MAX_NEW + 1, rows, dtype=np.int32)
    prompt_len[0], length[0] = BUCKET, MAX_NEW
    return Sequences(tokens(prompts, BUCKET), prompt_len, tokens(rows, MAX_NEW), length)


def sampled(setup: Setup, state: TrainState) -> sampler.Samples:
    """The policy's samples at temperature 1, drawn by training's sampler, on the host."""
    abstract, prompts = build.abstract_state(setup), setup.settings.batch.prompts_per_step
    policy = programs.compile_traced(programs.trace_policy(setup, abstract, "theta"))
    phi = programs.abstract_phi(setup, abstract)
    traced = programs.trace_sampler(setup, phi, BUCKET, prompts, SAMPLES)
    draw_samples = programs.compile_traced(traced, emitters=True)
    keys = programs.trace_keys(setup, prompts, SAMPLES).lower().compile()
    rows, ids = random_rows(prompts, prompts), np.arange(prompts, dtype=np.int32)
    samples = draw_samples(
        policy(state.params),
        *rollouts.on_mesh(setup.decode_mesh, (rows.prompt_PS, rows.prompt_len_P)),
        keys(np.int32(0), ids, np.zeros_like(ids)),
        rollouts.sampling(setup, 1.0),
    )
    return arrays.device_get("samples of the tiny model", samples)


def batch_of(setup: Setup) -> Batch:
    """The host arrays of an update's batch: random rows, every other one right."""
    s, spec = setup.settings, spec_of(setup)
    prompts, count = s.batch.prompts_per_step, s.batch.rollout_rows
    # about those of a random model
    logp_BT = np.full((count, MAX_NEW), -6.0, np.float32)
    reward_B = np.arange(count, dtype=np.float32) % 2
    samples = Rollouts(random_rows(prompts, count), logp_BT, reward_B, np.float32(1.0))
    demos = s.batch.demos_per_step
    batch = Batch(
        random_rows(demos, demos, seed=1) if spec.demos else None,
        dict.fromkeys(spec.sampled_by, samples),
    )
    return rollouts.pack_batch(s.batch.pack, batch)


def updater(setup: Setup) -> Callable[[TrainState, Batch], tuple[Tree, dict]]:
    """The compiled update of host arrays: parameters and metrics after it, on the host."""
    shapes = build.abstract_state(setup)
    program = programs.compile_traced(programs.trace_update(setup, shapes, BUCKET, spec_of(setup)))

    def update(state: TrainState, batch: Batch) -> tuple[Tree, dict]:
        after, metrics = program(placed(setup, state), rollouts.on_mesh(setup.mesh, batch))
        return arrays.device_get("an update of the tiny model", (after.params, metrics))

    return update
