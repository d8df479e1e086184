"""The line that is shown while programs compile tells what they are, and how long they took
before.
"""

from __future__ import annotations

import json

import jax
import pytest

from bridge_jax.training import compile_times
from tests.training.builds import build


@pytest.fixture
def cache(tmp_path):
    """A compilation cache of the test's own."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "xla"))
    yield tmp_path / "xla"
    jax.config.update("jax_compilation_cache_dir", before)


def test_what_is_compiled_is_named():
    """Sampler and evaluation only where the run has them; the updates of a method with several."""
    line = lambda method, **given: compile_times.announcement(build(method=method, **given)[0])
    start = lambda text: text.partition(";")[0]
    assert start(line("sft", eval__every=0)) == "compiling the update of sft"
    assert start(line("grpo")) == "compiling the sampler, the evaluation, the update of grpo"
    assert start(line("cold_start")).endswith("the evaluation, 2 updates of cold_start")
    assert "for 2 prompt lengths" in line("sft", data__buckets=(4, 6), task__levels=(1, 3))


def test_the_last_time_is_shown_again(cache):
    """Of the very same programs: another size, method or model has its own time."""
    setup, _ = build(method="grpo")
    assert compile_times.last(setup) is None and "last time" not in announcement(setup)
    compile_times.record(setup, 3.14159)
    compile_times.record(build(method="sft")[0], 70.0)
    assert compile_times.last(setup) == 3.1
    assert announcement(setup).endswith("of grpo; 3 s the last time")
    assert announcement(build(method="sft")[0]).endswith("1 min 10 s the last time")
    # what does not enter the programs makes no difference
    assert compile_times.last(build(method="grpo", steps=9, log__rollouts_every=0)[0]) == 3.1
    for other in (dict(batch__samples_per_prompt=8), dict(rollout__max_new=14)):
        assert compile_times.last(build(method="grpo", **other)[0]) is None
    assert sorted(json.loads((cache / compile_times.NAME).read_text()).values()) == [3.1, 70.0]


announcement = compile_times.announcement


def test_a_time_that_cannot_be_kept_is_lost_without_an_error(cache, monkeypatch):
    """A damaged file, a folder that cannot be written, no cache, a cache in a bucket."""
    setup, _ = build(method="sft")
    cache.mkdir()
    for text in ("{torn", "[1]", ""):
        (cache / compile_times.NAME).write_text(text)
        assert compile_times.last(setup) is None
    compile_times.record(setup, 2.0)
    assert compile_times.last(setup) == 2.0
    for folder in ("/dev/null/xla", None, "gs://bucket/xla"):
        jax.config.update("jax_compilation_cache_dir", folder)
        compile_times.record(setup, 5.0)
        assert compile_times.last(setup) is None
