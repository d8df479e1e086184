"""The text of a plan."""

from __future__ import annotations

from bridge_jax.planner import table


def test_the_table_names_what_its_seconds_leave_out():
    """What lies in the host's memory between steps is moved in each."""
    plan_of = {"step": {"update": 3.0, "rollout": 2.0, "grading": 0.0}, "host_bytes": 0}
    assert (
        table.step_lines(plan_of)
        == "step (update): 3.00 s, of it rollout 2.00 s and grading 0.00 s (given)"
    )
    assert "5.25 GB per device are in host memory" in table.step_lines(
        plan_of | {"host_bytes": 5.25e9}
    )
