"""What counts as a begun run, and what does not."""

from __future__ import annotations

from bridge_jax.rundir import layout, run_config
from tests import errors


def test_a_probe_that_a_kill_left_is_no_checkpoint(tmp_path):
    """A leftover probe file does not make a run count as begun."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".writable_0_123").touch()
    assert not layout.begun(tmp_path)


def test_a_save_that_was_cut_off_is_no_run(tmp_path):
    """Alone in the directory it is nothing; after a real checkpoint a config is required."""
    (tmp_path / "checkpoints" / "step_000004.orbax-checkpoint-tmp").mkdir(parents=True)
    assert not layout.begun(str(tmp_path))
    run_config.check_run(str(tmp_path), {"steps": 1}, {})
    (tmp_path / "checkpoints" / "step_000002").mkdir()
    assert layout.begun(str(tmp_path))
    with errors.raises(ValueError, str(tmp_path), "config.json"):
        run_config.check_run(str(tmp_path), {"steps": 1}, {})
