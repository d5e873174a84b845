"""ONNX graphs of one node, written by hand: what measures a machine needs no `onnx` package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

ElementType = Literal["float32", "float16", "uint8", "int8", "int32"]

IR_VERSION: Final = 8
OPSET: Final = 17
_TYPES: Final[Mapping[str, int]] = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "float16": 10}


def one_node(
    operator: str,
    inputs: Mapping[str, tuple[ElementType, Sequence[int]]],
    output: tuple[str, ElementType, Sequence[int]],
) -> bytes:
    """An ONNX file of one operator without attributes.

    Args:
        operator: as `MatMul`.
        inputs: element type and shape by name, in the operator's order.
        output: name, element type and shape.
    """
    name, kind, shape = output
    node = [*(_text(1, text) for text in inputs), _text(2, name), _text(4, operator)]
    graph = [
        _part(1, node),
        _text(2, operator),
        *(_part(11, _value(text, *of)) for text, of in inputs.items()),
        _part(12, _value(name, kind, shape)),
    ]
    opset = [_text(1, ""), _number(2, OPSET)]
    return b"".join([_number(1, IR_VERSION), _part(7, graph), _part(8, opset)])


def _value(name: str, kind: ElementType, shape: Sequence[int]) -> list[bytes]:
    dims = [_part(1, [_number(1, size)]) for size in shape]
    return [_text(1, name), _part(2, [_part(1, [_number(1, _TYPES[kind]), _part(2, dims)])])]


# === Protocol buffers: https://protobuf.dev/programming-guides/encoding ===


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _text(field: int, text: str) -> bytes:
    return _part(field, [text.encode()])


def _part(field: int, content: Sequence[bytes]) -> bytes:
    whole = b"".join(content)
    return _varint(field << 3 | 2) + _varint(len(whole)) + whole


def _varint(value: int) -> bytes:
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])
