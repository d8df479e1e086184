"""A parser of compiled XLA modules: instructions, loops with their trip counts, collectives.

XLA's own cost analysis counts a loop's body once, and its buffer assignment is not available for
TPUs. The scheduled text has both, since it lists all instructions in the order of execution with
shape, layout and origin. Trip counts are those that XLA notes (known_trip_count), or those of loops
that count up to a constant; others, such as the sampler's, are unknown.
"""

from __future__ import annotations

import collections
import math
import re
from typing import NamedTuple

BYTES = {
    "pred": 1,
    "s4": 0.5,
    "u4": 0.5,
    "s8": 1,
    "u8": 1,
    "s16": 2,
    "u16": 2,
    "bf16": 2,
    "f16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
    "f64": 8,
    "c64": 8,
    "c128": 16,
}
KINDS = ("all-gather", "reduce-scatter", "all-reduce", "collective-permute", "all-to-all")
ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|(?:true|false)_computation|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)
NAME = re.compile(r"%?([\w.\-]+)")


class Array(NamedTuple):
    """One array of an instruction's result."""

    dtype: str
    shape: tuple[int, ...]
    layout: str  # of XLA: minor to major, tiles, memory space
    bytes: int  # as stored, tiles padded
    hbm: bool  # whether it is in the device's main memory


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]  # its result, tuples flattened
    operands: tuple[str, ...]
    text: str  # the text after the operands
    root: bool

    @property
    def bytes(self) -> int:
        """Bytes of the whole result, in any memory."""
        return sum(array.bytes for array in self.arrays)

    def attribute(self, key: str) -> str:
        """The name after key=; "" where there is none."""
        found = re.search(rf"[ ,]{key}=%?([\w.\-]+)", self.text)
        return found[1] if found else ""

    @property
    def outputs(self) -> slice:
        """Which of `arrays` are new.

        An asynchronous "-start" lists its operands too: before the results or, in copies, after.
        """
        k = len(self.operands)
        if self.opcode == "copy-start":
            return slice(0, 1)
        asynchronous = self.opcode.endswith("-start") and len(self.arrays) > k
        return (
            slice(k, min(2 * k, len(self.arrays))) if asynchronous else slice(0, len(self.arrays))
        )

    @property
    def called(self) -> tuple[str, ...]:
        """Names of all computations that the instruction calls."""
        return tuple(
            name for group in CALLED.findall(self.text) for name in NAME.findall(group.strip("{}"))
        )

    @property
    def origin(self) -> str:
        """The jax operations that the instruction comes from."""
        found = re.search(r'op_name="([^"]*)"', self.text)
        return found[1] if found else ""


class Module(NamedTuple):
    """A compiled program."""

    computations: dict[str, list[Instruction]]  # in the order of execution
    entry: str
    partitions: int
    aliased: frozenset[int]  # outputs that share the buffer of an argument


class Visit(NamedTuple):
    """An instruction and how often it runs."""

    instruction: Instruction
    times: int
    unknown: int  # number of enclosing loops of unknown trip count, which `times` counts as 1
    computation: str  # the computation that contains the instruction


class Collective(NamedTuple):
    """One communicating instruction."""

    kind: str
    bytes: float  # that each chip receives per execution
    times: int
    unknown: int
    origin: str


def stored_bytes(dtype: str, shape: tuple[int, ...], layout: str, minor_to_major: str) -> int:
    """Bytes of one array; a tile T(8,128) pads the minor dimensions to multiples of 8 and 128."""
    order = [int(i) for i in minor_to_major.split(",") if i] or list(range(len(shape)))[::-1]
    sizes = [shape[i] for i in order]
    tile = re.search(r"T\(([\d,]+)\)", layout)
    for i, size in enumerate(
        reversed([int(n) for n in tile[1].split(",")] if tile and len(shape) > 1 else [])
    ):
        if i < len(sizes):
            sizes[i] = -(-sizes[i] // size) * size
    return math.ceil(math.prod(sizes) * BYTES.get(dtype, 0))


def arrays_of(text: str) -> tuple[Array, ...]:
    """The arrays of a type as XLA writes it before an opcode."""
    found = []
    for dtype, shape, order, layout in ARRAY.findall(text):
        sizes = tuple(int(n) for n in shape.split(",") if n)
        space = re.search(r"S\((\d+)\)", layout)
        found.append(
            Array(
                dtype,
                sizes,
                layout,
                stored_bytes(dtype, sizes, layout, order),
                space is None or space[1] == "0",
            )
        )
    return tuple(found)


def _split_type(text: str) -> tuple[str, str]:
    """The type at the beginning of the text, and the rest."""
    if not text.startswith("("):
        return text.split(" ", 1)
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return text[: i + 1], text[i + 1 :].lstrip()
    raise ValueError(f"no end of the type in {text[:80]!r}")


def _instruction(line: str) -> Instruction | None:
    head = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if not head:
        return None
    shape, rest = _split_type(line[head.end() :])
    opcode, _, rest = rest.partition("(")
    depth, end = 1, len(rest)
    for i, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            end = i
            break
    inside = rest[:end]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside)) or tuple(
        part.split()[-1]
        for part in inside.split(",")
        if part.strip() and opcode not in ("constant", "parameter")
    )
    # the "operand" of these is their value
    text = rest[end:] if opcode not in ("constant", "parameter") else rest
    return Instruction(head[2], opcode, arrays_of(shape), operands, text, bool(head[1]))


def parse(text: str) -> Module:
    """Computations of a module's text, as `compiled.as_text()` gives it."""
    computations, entry, current = {}, "", None
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if header and " = " not in line.split("(")[0]:
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif line.rstrip() == "}":
            current = None
        elif current is not None and (found := _instruction(line)):
            current.append(found)
        # the attributes of a kernel take several lines, with its origin on the last
        elif current:
            current[-1] = current[-1]._replace(text=current[-1].text + line)
    partitions = re.search(r"num_partitions=(\d+)", text[:100000])
    first = text.split("\n", 1)[0]
    aliased = frozenset(int(n or 0) for n in re.findall(r"\{(\d*)\}: \(\d+, \{[\d, ]*\}", first))
    return Module(computations, entry, int(partitions[1]) if partitions else 1, aliased)


def trip_count(module: Module, loop: Instruction, around: list[Instruction]) -> int | None:
    """The trip count of a while loop, or None where it depends on data.

    around: the instructions of the computation that contains the loop.
    """
    known = re.search(r'known_trip_count"?:\{"n":"(\d+)"', loop.text)
    if known:
        return int(known[1])
    condition = {i.name: i for i in module.computations[loop.attribute("condition")]}
    body = {i.name: i for i in module.computations[loop.attribute("body")]}
    begin = {i.name: i for i in around}
    root = next(i for i in condition.values() if i.root)
    # the comparison alone, with the condition's values as operands
    if root.opcode == "fusion":
        inner = {i.name: i for i in module.computations[root.called[0]]}
        values = dict(
            zip(
                (
                    i.name
                    for i in sorted(
                        (i for i in inner.values() if i.opcode == "parameter"), key=_number
                    )
                ),
                root.operands,
            )
        )
        root = next(i for i in inner.values() if i.root)
        root = root._replace(
            operands=tuple(values.get(_source(inner, name), name) for name in root.operands)
        )
        condition = inner | condition
    if root.opcode != "compare" or len(root.operands) != 2:
        return None
    carried = {}
    start = begin.get(_source(begin, loop.operands[0]))
    end_of_body = next(i for i in body.values() if i.root)
    if start is None or start.opcode != "tuple" or end_of_body.opcode != "tuple":
        return None

    def value(name: str, table: dict) -> int | None:
        found = table.get(_source(table, name))
        return _constant(found) if found is not None and found.opcode == "constant" else None

    for side, name in enumerate(root.operands):
        found = condition.get(_source(condition, name))
        if found is not None and found.opcode == "get-tuple-element":
            carried[side] = int(re.search(r"index=(\d+)", found.text)[1])
    bound = [
        value(name, condition)
        if side not in carried
        else value(start.operands[carried[side]], begin)
        for side, name in enumerate(root.operands)
    ]
    step = _step(body, end_of_body.operands[carried[0]]) if 0 in carried else None
    direction = re.search(r"direction=(\w+)", root.text)[1]
    if None in bound or not step or direction not in ("LT", "LE", "GT", "GE"):
        return None
    return max(
        0, -(-(bound[1] - bound[0] + (direction in ("LE", "GE")) * (1 if step > 0 else -1)) // step)
    )


def _number(parameter: Instruction) -> int:
    return int(re.match(r"(\d+)", parameter.text)[1])


def _constant(instruction: Instruction) -> int | None:
    found = re.match(r"(-?\d+)\)", instruction.text)
    return int(found[1]) if found else None


def _source(table: dict[str, Instruction], name: str) -> str:
    """The value's name before copies and other instructions that do not change it."""
    while name in table and table[name].opcode in (
        "copy",
        "bitcast",
        "convert",
        "optimization-barrier",
    ):
        name = table[name].operands[0]
    return name


def _step(body: dict[str, Instruction], name: str) -> int | None:
    """The constant increment of a loop's counter, or None."""
    found = body.get(_source(body, name))
    if found is None or found.opcode != "add":
        return None
    terms = [body.get(_source(body, operand)) for operand in found.operands]
    steps = [_constant(term) for term in terms if term is not None and term.opcode == "constant"]
    return steps[0] if len(steps) == 1 else None


def visits(module: Module) -> list[Visit]:
    """All instructions reachable from the entry, with their number of executions.

    All branches of a conditional are counted.
    """
    found = []

    def walk(computation: str, times: int, unknown: int) -> None:
        instructions = module.computations[computation]
        for instruction in instructions:
            found.append(Visit(instruction, times, unknown, computation))
            if instruction.opcode == "while":
                trips = trip_count(module, instruction, instructions)
                walk(
                    instruction.attribute("body"),
                    times * (1 if trips is None else trips),
                    unknown + (trips is None),
                )
            elif instruction.opcode in ("fusion", "call", "conditional", "async-start"):
                for name in instruction.called:
                    walk(name, times, unknown)

    walk(module.entry, 1, 0)
    return found


def group_size(text: str, partitions: int) -> int:
    """Devices in one group of a collective, from replica_groups in any of XLA's three notations."""
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", text):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", found[1])}
        parts = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", found[2])
        return (
            math.prod(int(part) if part else sizes.get(name, 1) for name, part in parts)
            if parts
            else partitions
        )
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", text):
        return int(found[2])
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
        return found[1].count(",") + 1
    return partitions


def collectives(module: Module) -> list[Collective]:
    """All collectives with the bytes that each device receives.

    With n devices in a group: all-gather (n-1)/n of its result, reduce-scatter (n-1)/n of its
    operand, all-reduce twice that, all-to-all (n-1)/n, collective-permute all of it.
    """
    found, seen = [], set()
    for visit in visits(module):
        instruction = visit.instruction
        kind = instruction.opcode.removesuffix("-start")
        if kind not in KINDS:
            continue
        channel = re.search(r"channel_id=(\d+)", instruction.text)
        if channel and (channel[1], visit.times, visit.unknown) in seen:
            # the TPU compiler splits an asynchronous collective into parts, each written like the
            # whole
            continue
        seen |= {(channel[1], visit.times, visit.unknown)} if channel else set()
        if kind == "all-reduce" and "all-reduce-scatter" in visit.computation:
            # fused with the slice of its result that a device keeps
            kind = "reduce-scatter"
        size = sum(array.bytes for array in instruction.arrays[instruction.outputs])
        n = group_size(instruction.text, module.partitions)
        share = (n - 1) / n
        # the result is one part of n, except in a fusion
        whole = n if instruction.opcode.startswith("reduce-scatter") else 1
        received = {
            "all-gather": size * share,
            "reduce-scatter": size * share * whole,
            "all-reduce": 2 * size * share,
            "all-to-all": size * share,
            "collective-permute": size,
        }[kind]
        found.append(Collective(kind, received, visit.times, visit.unknown, instruction.origin))
    return found


def totals(found: list[Collective], trips: float = 1) -> dict[str, dict]:
    """Per kind of collective: instructions, executions, bytes received per chip.

    trips: trip count of loops of unknown length.
    """
    table = collections.defaultdict(lambda: dict(instructions=0, times=0, bytes=0.0))
    for one in found:
        times = one.times * (trips if one.unknown else 1)
        row = table[one.kind]
        row["instructions"], row["times"], row["bytes"] = (
            row["instructions"] + 1,
            row["times"] + times,
            row["bytes"] + one.bytes * times,
        )
    return {kind: row | {"times": round(row["times"])} for kind, row in table.items()}
