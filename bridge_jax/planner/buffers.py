"""The buffers alive at a compiled program's memory peak, found by a walk through its schedule.

The compiler reports the peak in bytes, but not its buffers. Here every instruction of the scheduled
text allocates its result, in main memory alone, from its line to the last line that reads it.
Results that XLA writes in place (loop states, updated slices, donated arguments) use the buffer of
what they replace; an elementwise fusion uses that of an operand with no later use. The sum of the
buffers is printed next to the compiler's peak and does not replace it: it is 2 to 7% larger for the
updates of grpo in docs/plans, 19 to 23% for those of bridge.
"""

from __future__ import annotations

import collections
import re
from typing import NamedTuple

from bridge_jax.planner.hlo import Instruction, Module

PASS_THROUGH = ("bitcast", "optimization-barrier", "async-update", "domain")
NO_MEMORY = ("constant", "after-all", "partition-id", "replica-id", "iota")
# output_to_operand_aliasing: result, operand, index within the operand
ALIASED = re.compile(r"\{(\d*)\}: \((\d+), \{(\d*)\}\)")
IN_PLACE = {"dynamic-update-slice", "scatter"}
Parts = list[frozenset[int]]  # the buffers behind each array of a flattened result


class Buffer(NamedTuple):
    """Memory of an argument or of an instruction's result."""

    name: str
    bytes: int
    what: str  # dtype and shape
    origin: str  # jax operations


class Peak(NamedTuple):
    """The memory peak of a computation."""

    bytes: int
    alive: tuple[Buffer, ...]


def peak(module: Module) -> Peak:
    """The peak of the whole program: its bytes, and the buffers alive then, largest first."""
    found = _peak(module, module.entry, {})
    return found._replace(
        alive=tuple(sorted((b for b in found.alive if b.bytes), key=lambda b: -b.bytes))
    )


def _peak(module: Module, name: str, memo: dict[str, Peak]) -> Peak:
    if name not in memo:
        walk = _Walk(module, name, memo)
        walk.assign_buffers()
        memo[name] = walk.peak()
    return memo[name]


class _Walk:
    """A walk through one computation: the buffers of every value, and their lifetimes."""

    def __init__(self, module: Module, name: str, memo: dict[str, Peak]):
        self.module, self.lines, self.memo, self.entry = (
            module,
            module.computations[name],
            memo,
            name == module.entry,
        )
        self.by_name = {line.name: line for line in self.lines}
        # of several readers the last one stays
        self.last_read = {name: at for at, line in enumerate(self.lines) for name in line.operands}
        self.parts: dict[str, Parts] = {}
        self.buffers: list[Buffer] = []
        self.first: list[int] = []
        self.last: list[int] = []
        # line -> peak inside of the loop or branch that it runs
        self.inner: dict[int, Peak] = {}

    def assign_buffers(self) -> None:
        """Determines the buffers of every value."""
        for at, line in enumerate(self.lines):
            operands = [self.parts.get(name, []) for name in line.operands]
            for buffer in frozenset().union(*(part for parts in operands for part in parts)):
                self.last[buffer] = at
            results = self._result(at, line, operands)
            self.parts[line.name] = results + [frozenset()] * (len(line.arrays) - len(results))
        self._extend_lifetimes()

    def _result(self, at: int, line: Instruction, operands: list[Parts]) -> Parts:
        if line.opcode == "parameter":
            # parameters of loops and branches are counted by the caller
            return self._allocate(at, line) if self.entry else []
        if line.opcode.endswith("-done"):
            return operands[0][self.by_name[line.operands[0]].outputs]
        if line.opcode == "tuple" or line.opcode in PASS_THROUGH:
            return [part for parts in operands for part in parts][: len(line.arrays)]
        if line.opcode == "get-tuple-element":
            return self._element(line, operands[0])
        if line.opcode == "while":
            self.inner[at] = _peak(self.module, line.attribute("body"), self.memo)
            return operands[0]
        if line.opcode in NO_MEMORY:
            return []
        if line.opcode in ("call", "conditional"):
            inside = [
                _peak(self.module, name, self.memo)
                for name in line.called
                if name in self.module.computations
            ]
            self.inner[at] = max(inside, default=Peak(0, ()))
        replaced = self._replaced(at, line)
        if replaced is not None:
            return operands[replaced][:1]
        if line.opcode.endswith("-start"):
            return self._started(at, line, [part for parts in operands for part in parts])
        aliases = {
            int(i or 0): (int(operand), int(j or 0))
            for i, operand, j in ALIASED.findall(line.text.split("metadata=")[0])
        }
        unaliased = [i for i in range(len(line.arrays)) if i not in aliases]
        fresh = dict(
            zip(
                unaliased,
                self._allocate(at, line._replace(arrays=tuple(line.arrays[i] for i in unaliased))),
            )
        )
        return [
            fresh[i] if i in fresh else operands[aliases[i][0]][aliases[i][1]]
            for i in range(len(line.arrays))
        ]

    def _started(self, at: int, line: Instruction, operands: Parts) -> Parts:
        """New buffers for the results of a "-start" instruction, which lists its operands too."""
        new, rest = range(len(line.arrays))[line.outputs], iter(operands)
        fresh = self._allocate(at, line._replace(arrays=line.arrays[line.outputs]))
        return [
            fresh[i - new.start] if i in new else next(rest, frozenset())
            for i in range(len(line.arrays))
        ]

    def _allocate(self, at: int, line: Instruction) -> Parts:
        return [
            self._new(at, line, array.bytes, f"{array.dtype}[{','.join(map(str, array.shape))}]")
            if array.hbm and array.bytes
            else frozenset()
            for array in line.arrays
        ]

    def _new(self, at: int, line: Instruction, size: int, what: str) -> frozenset[int]:
        self.buffers.append(Buffer(line.name, size, what, line.origin))
        self.first.append(0 if line.opcode == "parameter" else at), self.last.append(at)
        return frozenset({len(self.buffers) - 1})

    def _element(self, line: Instruction, parts: Parts) -> Parts:
        """The buffers of one element.

        Where elements are tuples themselves, those of all of them.
        """
        index, source = int(re.search(r"index=(\d+)", line.text)[1]), self.by_name[line.operands[0]]
        flat = len(line.arrays) == 1 and index < len(source.arrays)
        return parts[index : index + 1] if flat else parts

    def _replaced(self, at: int, line: Instruction) -> int | None:
        """The operand whose buffer the result overwrites, or None."""
        candidates = [i for i, name in enumerate(line.operands) if self._same_layout(name, line)]
        if not candidates:
            return None
        inside = self.module.computations[line.called[0]] if line.opcode == "fusion" else []
        if {line.opcode, *(other.opcode for other in inside)} & IN_PLACE:
            return candidates[0]
        elementwise = line.opcode == "fusion" and "kind=kLoop" in line.text
        return next(
            (i for i in candidates if elementwise and self._is_last_use(line.operands[i], at)), None
        )

    def _same_layout(self, name: str, line: Instruction) -> bool:
        """Whether a value has the result's dtype, shape and memory space, and its own buffer."""
        source = self.by_name.get(name)
        return (
            len(line.arrays) == 1
            and source is not None
            and len(source.arrays) == 1
            and bool(self.parts[name][0])
            and source.arrays[0][:2] == line.arrays[0][:2]
            and source.arrays[0].hbm == line.arrays[0].hbm
        )

    def _is_last_use(self, name: str, at: int) -> bool:
        """Whether no value in the same buffer is read after this line."""
        mine = self.parts[name][0]
        same = [other for other, parts in self.parts.items() if any(mine & part for part in parts)]
        return all(self.last_read.get(other, at) <= at for other in same) and not any(
            self.by_name[other].root for other in same
        )

    def _extend_lifetimes(self) -> None:
        """Extends the lifetimes of results and arguments to the end.

        A result that is written into the caller's buffer takes no memory of its own.
        """
        root = next((line for line in self.lines if line.root), self.lines[-1])
        arguments = {
            i
            for i, buffer in enumerate(self.buffers)
            if self.by_name[buffer.name].opcode == "parameter"
        }
        for i, part in enumerate(self.parts[root.name]):
            for buffer in part - arguments:
                if self.entry and i not in self.module.aliased:
                    self.last[buffer] = len(self.lines)
                else:
                    self.buffers[buffer] = self.buffers[buffer]._replace(bytes=0)
        for buffer in arguments:
            self.last[buffer] = len(self.lines)

    def peak(self) -> Peak:
        """The peak, including the memory inside loops and branches."""
        begins, ends = collections.defaultdict(list), collections.defaultdict(list)
        for buffer in range(len(self.buffers)):
            begins[self.first[buffer]].append(buffer), ends[self.last[buffer]].append(buffer)
        alive, now, best = set(), 0, Peak(0, ())
        for at in range(len(self.lines)):
            alive.update(begins[at])
            now += sum(self.buffers[buffer].bytes for buffer in begins[at])
            inside = self.inner.get(at, Peak(0, ()))
            if now + inside.bytes > best.bytes:
                best = Peak(
                    now + inside.bytes, (*(self.buffers[buffer] for buffer in alive), *inside.alive)
                )
            now -= sum(self.buffers[buffer].bytes for buffer in ends[at])
            alive.difference_update(ends[at])
        return best
