"""Rows that hold several samples fill up well and give the same updates."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge_jax import methods
from bridge_jax.data import packing
from bridge_jax.models import logprobs
from bridge_jax.training import build
from bridge_jax.training.settings import Model
from bridge_jax.types import Packing, Sequences
from tests import errors, tiny_runs, toys
from tests.data.packed import packed
from tests.distributed.one_device import made, on_one_device
from tests.tiny_runs import quick  # noqa: F401 (a fixture)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=40), st.integers(1, 6))
def test_plan(lengths, places):
    """Everybody once, nobody of length 0, no row too long or too full, no two rows that would fit
    in one.
    """
    found = packing.plan(np.array(lengths), 20, places)
    rows = [[b for b in row if b >= 0] for row in found.slot_RK]
    assert found.slot_RK.shape == (len(lengths), places) and found.slot_RK.dtype == np.int32
    assert sorted(b for row in rows for b in row) == [
        b for b, length in enumerate(lengths) if length
    ]
    assert all(rows[: found.used]) and not any(rows[found.used :])
    filled = [sum(lengths[b] for b in row) for row in rows[: found.used]]
    assert all(total <= 20 for total in filled)
    open_rows = [total for row, total in zip(rows, filled) if len(row) < places]
    assert (
        all(a + b > 20 for i, a in enumerate(open_rows) for b in open_rows[i + 1 :]) or places < 6
    )


def test_plan_by_hand():
    """9 and 8 begin rows, 5 joins neither (10 wide), 4 joins the 5, 1 the 9; the empty one goes
    nowhere.
    """
    found = packing.plan(np.array([4, 8, 0, 9, 1, 5]), 10, 3)
    np.testing.assert_array_equal(
        found.slot_RK[:4], [[3, 4, -1], [1, -1, -1], [5, 0, -1], [-1, -1, -1]]
    )
    assert found.used == 3
    with errors.raises(ValueError, "sample 0", "11", "10"):
        packing.plan(np.array([11]), 10, 2)


def test_a_row_by_hand():
    """Prompts 7 8 and 9, completions 1 2 3 and 4: tokens, targets, positions, segments; and the way
    back.
    """
    seqs = Sequences(
        jnp.array([[7, 8, 0], [9, 0, 0]]),
        jnp.array([2, 1]),
        jnp.array([[1, 2, 3, 0], [4, 0, 0, 0]]),
        jnp.array([3, 1]),
        Packing(jnp.array([[1, 0, -1], [-1, -1, -1]]), jnp.int32(1)),
    )
    rows = packing.concatenate(packing.select_rows(seqs, seqs.packing.slot_RK[:1]))
    np.testing.assert_array_equal(rows.token_RW, [[9, 4, 7, 8, 1, 2, 3]])
    np.testing.assert_array_equal(rows.segment_RW, [[1, 1, 2, 2, 2, 2, 2]])
    np.testing.assert_array_equal(rows.position_RW, [[0, 1, 0, 1, 2, 3, 4]])
    back = np.asarray(rows.unpack(rows.target_RW))
    assert back[0, 0] == 4 and list(back[1, :3]) == [1, 2, 3]
    where = np.asarray(rows.unpack(jnp.arange(7)[None]))
    assert where[0, 0] == 0 and list(where[1, :3]) == [
        3,
        4,
        5,
    ]  # each predicted from the token before it


@pytest.mark.parametrize("places", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_log_probabilities_are_those_of_single_rows(places, monkeypatch):
    """Of ragged samples of shared prompts; what lies behind a row's last sample changes nothing.
    With one place in a row the completions alone are scored, with four the whole row.
    """
    policy = build.make_policy(toys.CFG, Model(), toys.ADAPTER)
    theta, seqs = toys.transformer_theta(), toys.sequences(0, 4, 3)
    whole = packing.plan(np.asarray(packing.lengths(seqs)), 11, places)
    assert (whole.used < 12) == (places > 1) and (places * seqs.tokens_BT.shape[1] < 11) == (
        places == 1
    )
    logp_BT, entropy_BT = policy.logp(theta, seqs, 0.7)
    scored, token_logp = [], logprobs.token_logp
    monkeypatch.setattr(
        logprobs,
        "token_logp",
        lambda hidden, *given: scored.append(hidden.shape) or token_logp(hidden, *given),
    )
    packed = seqs.replace(packing=whole)
    mine, mine_entropy = policy.logp(
        theta, packing.select_rows(packed, jnp.asarray(whole.slot_RK)), 0.7
    )
    assert scored[0][:2] == ((12, seqs.tokens_BT.shape[1]) if places == 1 else (12, 11))
    for b in range(12):
        place, length = (
            int(np.argwhere(whole.slot_RK.reshape(-1) == b)[0, 0]),
            int(seqs.length_B[b]),
        )
        np.testing.assert_allclose(mine[place, :length], logp_BT[b, :length], atol=1e-5)
        np.testing.assert_allclose(mine_entropy[place, :length], entropy_BT[b, :length], atol=1e-5)


def assert_same_update(name: str, places: int = 3) -> None:
    """Parameters and moments to 1e-5, metrics; every kind of step. Micro-batches of 8 rows, of
    which packing fills fewer.
    """
    method = made(name)
    for state, batch, expected, expected_metrics in on_one_device(name):
        after, metrics = jax.jit(method.update)(state, packed(batch, places))
        assert (
            toys.change((after.params, after.opt_state), (expected.params, expected.opt_state))
            < 1e-5
        )
        for key in set(expected_metrics) - {
            "budget/gradient_prompt_tokens",
            "budget/forward_tokens",
        }:
            np.testing.assert_allclose(
                metrics[key], expected_metrics[key], rtol=1e-4, atol=1e-5, err_msg=key
            )


@pytest.mark.slow
@pytest.mark.parametrize("places", [1, 3])
def test_the_same_update_packed(places):
    """BRIDGE makes the same update of packed rows as of plain ones."""
    assert_same_update("bridge", places)


@pytest.mark.slow
@pytest.mark.parametrize("name", methods.names())
def test_the_same_update_of_every_method(name):
    """Every method makes the same update of packed rows as of plain ones."""
    assert_same_update(name)


@pytest.mark.slow
def test_a_run_with_packed_rows(quick, tmp_path):
    """Through the loop: the same samples and, to rounding, the same numbers as without; more prompt
    tokens, and told so.
    """
    given = dict(steps=2, eval__every=2, optim__base__eps=10.0, optim__lora__eps=10.0)
    tiny_runs.go(tmp_path / "single", **given)
    tiny_runs.go(tmp_path / "packed", batch__pack=3, **given)
    for one, other in zip(
        tiny_runs.lines(tmp_path / "packed"), tiny_runs.lines(tmp_path / "single"), strict=True
    ):
        assert (
            one["step"] == 0
            or one["budget/gradient_prompt_tokens"] > other["budget/gradient_prompt_tokens"]
        )
        for key in set(other) - {
            "budget/gradient_prompt_tokens",
            "budget/forward_tokens",
            "budget/flops",
        }:
            np.testing.assert_allclose(one[key], other[key], rtol=1e-4, atol=1e-5, err_msg=key)
