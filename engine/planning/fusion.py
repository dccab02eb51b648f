"""What torch.compile leaves of passes: those between two products become one.

A value that is made and used up inside such a group never reaches memory. What a group reads from
outside, and what of it is read later or by nobody (a gradient), is its traffic.
"""

from collections.abc import Iterator, Sequence

from mim3d.engine.planning.operations import Operation, Part

BORDERS = ("product", "convolution", "attention")


def fused(operations: Sequence[Operation]) -> list[Operation]:
    """The same work with every group of passes as one operation, named "fused"."""
    last_read = last_reads(operations)
    found: list[Operation] = []
    for end, group in groups_of(operations):
        if group[0].kind in BORDERS:
            found.append(group[0])
        else:
            found.append(one_pass(group, end, last_read))
    return found


def groups_of(operations: Sequence[Operation]) -> Iterator[tuple[int, list[Operation]]]:
    """The place past each group, and its operations; a product is a group of its own."""
    group: list[Operation] = []
    for place, operation in enumerate(operations):
        if operation.kind == "view":
            continue
        alone = operation.kind in BORDERS
        if group and (alone or operation.backward != group[0].backward):
            yield place, group
            group = []
        if alone:
            yield place + 1, [operation]
        else:
            group.append(operation)
    if group:
        yield len(operations), group


def one_pass(group: list[Operation], end: int, last_read: dict[int, int]) -> Operation:
    """A group of passes, all before place `end`, as one."""
    made: dict[int, float] = {}
    read: dict[int, float] = {}
    used: set[int] = set()
    for operation in group:
        for part in operation.read:
            used.add(part.memory)
            if part.memory not in made:
                read[part.memory] = max(read.get(part.memory, 0.0), part.nbytes)
        for part in operation.written:
            made[part.memory] = max(made.get(part.memory, 0.0), part.nbytes)
    leaves = {
        memory: nbytes
        for memory, nbytes in made.items()
        if last_read.get(memory, -1) >= end or memory not in used
    }
    parts = tuple(tuple(Part(*each) for each in side.items()) for side in (read, leaves))
    return Operation("fused", "pass", (), parts[0], parts[1], group[0].backward)


def last_reads(operations: Sequence[Operation]) -> dict[int, int]:
    """Place of the last operation that reads each memory."""
    return {part.memory: place for place, one in enumerate(operations) for part in one.read}
