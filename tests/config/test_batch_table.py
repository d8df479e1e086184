"""A batch that divides is tabulated; any other is refused with the nearest that work."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from bridge_jax.config.batch_table import BatchTable
from tests import errors


def test_batch_table_by_hand():
    """Micro-batches, rows per device and padding are those worked out by hand."""
    table = BatchTable(
        prompts_per_step=6, samples_per_prompt=4, demos_per_step=16, microbatch_rows=2, devices=4
    )
    assert (table.microbatch, table.rollout_rows, table.rollout_microbatches) == (8, 24, 3)
    assert (table.rollout_rows_per_device, table.prompts_per_microbatch) == (6, 2)
    assert (table.demo_microbatch, table.demo_microbatches, table.demo_rows_per_device) == (8, 2, 4)
    part = BatchTable(
        prompts_per_step=2, samples_per_prompt=8, demos_per_step=2, microbatch_rows=1, devices=2
    )
    assert (part.microbatch, part.rollout_microbatches, part.prompts_per_microbatch) == (2, 8, 1)
    few = BatchTable(
        prompts_per_step=2, samples_per_prompt=4, demos_per_step=3, microbatch_rows=2, devices=2
    )
    assert (
        few.demo_microbatch,
        few.demo_microbatches,
        few.demo_padding,
        few.demo_rows_per_device,
    ) == (3, 1, 1, 2)
    odd = BatchTable(
        prompts_per_step=64, samples_per_prompt=5, demos_per_step=64, microbatch_rows=5, devices=4
    )
    assert (
        odd.demo_microbatch,
        odd.demo_microbatches,
        odd.demo_padding,
        odd.demo_rows_per_device,
    ) == (20, 4, 16, 20)


def test_demonstrations_are_cut_as_far_as_each_device_has_some():
    """64 and 60 of them (4 empty rows are added) over 16 devices are 4 on each: 1, 2 or 4
    micro-batches; 64 over 64 are one.
    """
    table = lambda demos, devices: BatchTable(
        prompts_per_step=64,
        samples_per_prompt=5,
        demos_per_step=demos,
        microbatch_rows=5,
        devices=devices,
    )
    for parts in (0, 1, 2, 4):
        table(64, 16).check_demo_parts("k", parts)
        table(60, 16).check_demo_parts("k", parts)
    with errors.raises(ValueError, "k=8", "4", "16", "1, 2, 4, or 0"):
        table(64, 16).check_demo_parts("k", 8)
    with errors.raises(ValueError, "k=2", "1, or 0"):
        table(64, 64).check_demo_parts("k", 2)


def test_batch_table_of_packed_rows():
    """Cut anywhere, also into fewer rows than a micro-batch may have: 24 rows in sixteens and 8
    empty ones, 8 rows in one.
    """
    table = BatchTable(
        prompts_per_step=6,
        samples_per_prompt=4,
        demos_per_step=16,
        microbatch_rows=2,
        devices=8,
        pack=4,
    )
    assert (table.rollout_microbatch, table.rollout_microbatches) == (16, 2)
    assert (table.rollout_rows_per_device, table.prompts_unit) == (3, 2)
    lines = table.format().splitlines()
    assert [line.split()[2 if "micro" not in line else 1] for line in lines[1:3]] == ["24", "2"]
    assert (
        "at most, those that packing fills" in lines[2]
        and "a row holds up to 4 samples" in lines[3]
    )
    assert lines[4].split()[3:5] == ["8", "0"]
    few = BatchTable(
        prompts_per_step=2,
        samples_per_prompt=4,
        demos_per_step=2,
        microbatch_rows=2,
        devices=8,
        pack=4,
    )
    assert (few.rollout_microbatch, few.rollout_microbatches, few.rollout_rows_per_device) == (
        8,
        1,
        1,
    )


def test_a_method_that_samples_nothing_has_no_rollout_rows_to_divide():
    """Refused for a method that samples, taken for one that does not; the table then has
    demonstrations alone.
    """
    numbers = dict(
        prompts_per_step=3, samples_per_prompt=5, demos_per_step=16, microbatch_rows=2, devices=8
    )
    with errors.raises(ValueError, "batch.samples_per_prompt=5", "16"):
        BatchTable(**numbers)
    lines = BatchTable(**numbers, samples=False).format().splitlines()
    assert [line.split()[-1] for line in lines] == [
        "demos",
        "16",
        "1",
        "16",
        "0",
        "2",
    ] and "rollouts" not in lines[0]


def test_batch_table_prints_what_was_derived():
    """The table shows rows, micro-batches, padding and groups of both columns."""
    head, *lines = BatchTable(6, 4, 16, 2, 4).format().splitlines()
    rollouts, demos = head.index("rollouts"), head.index("demos")
    assert [(line[rollouts:].split()[0], line[demos:].split()[0]) for line in lines] == [
        ("24", "16"),
        ("3", "2"),
        ("8", "8"),
        ("0", "0"),
        ("6", "4"),
    ]
    assert BatchTable(64, 5, 64, 5, 4).format().splitlines()[4].split()[3:5] == ["0", "16"]
    assert "2 whole group(s)" in lines[2] and "1/4 of a group" in BatchTable(2, 8, 2, 1, 2).format()


@pytest.mark.parametrize(
    "given, says",
    [
        (
            (4, 5, 4, 2, 2),
            "batch.microbatch_rows=5; batch.samples_per_prompt=4 or 8",
        ),  # 4 rows v. groups of 5
        (
            (3, 4, 4, 8, 1),
            "batch.prompts_per_step=2 or 4; batch.microbatch_rows=4 or 12",
        ),  # 12 rows in eights
        ((4, 1, 4, 1, 1), ("batch.samples_per_prompt=1", "at least 2")),
        ((0, 4, 4, 1, 1), ("batch.prompts_per_step=0", "at least 1")),
        ((4, 4, 4, 1.0, 1), "batch.microbatch_rows=1.0"),
        ((4, 4, True, 1, 1), "batch.demos_per_step=True"),
        (
            (3, 4, 4, 2, 8, 4),
            ("12", "8 devices", "batch.prompts_per_step=2 or 4; batch.samples_per_prompt=8"),
        ),
    ],
)
def test_batch_table_refuses_and_names_the_nearest_valid_values(given, says):
    """The error has the key, the value given and the nearest values that work."""
    with pytest.raises(ValueError) as error:
        BatchTable(*given)
    errors.assert_names(str(error.value), says)


def test_batch_table_over_a_grid_agrees_with_the_rules_and_its_advice_works():
    """A table exists where the rules allow it; each value that an error names works."""
    names = [field.name for field in dataclasses.fields(BatchTable)]
    for given in itertools.product((1, 3, 4), (2, 3, 8), (1, 4, 6), (1, 2, 3), (1, 2), (0, 2)):
        prompts, samples, demos, rows, devices, pack = given
        micro = rows * devices
        even = prompts * samples % micro == 0 and (samples % micro == 0 or micro % samples == 0)
        allowed = prompts * samples % devices == 0 if pack else even
        try:
            table = BatchTable(*given)
        except ValueError as error:
            assert not allowed, given
            if "Nearest that work: " not in str(error):
                continue
            for part in str(error).split("Nearest that work: ")[1].rstrip(".").split("; "):
                key, values = part.removeprefix("batch.").split("=")
                for value in values.split(" or "):
                    BatchTable(**dict(zip(names, given)) | {key: int(value)})
        else:
            assert allowed, given
            assert pack or table.rollout_microbatches * table.microbatch == table.rollout_rows
            assert table.rollout_microbatch % devices == 0 and prompts % table.prompts_unit == 0
            padded = demos + table.demo_padding
            assert 0 <= table.demo_padding < micro and padded % devices == 0
            assert (
                padded == micro * table.demo_microbatches
                if demos > micro
                else table.demo_microbatches == 1
            )
            assert table.demo_rows_per_device * devices == padded
