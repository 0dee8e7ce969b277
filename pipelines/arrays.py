"""Further parts of a sample that are not pictures of the subject: numbers, arrays and tensors, without pickle."""

from __future__ import annotations

import ast
import struct

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from imprint.errors import SampleError
from imprint.pipelines.samples import PICTURES

Value = np.ndarray | str | int
_NPY_MAGIC = b"\x93NUMPY"
_HEADER_LENGTH = {1: "<H", 2: "<I", 3: "<I"}  # by major version of the npy format
_MAX_HEADER = 65536


def column_name(extension: str) -> str:
    """The column of a further part: `latents` for `latents.npy`, and `cls` for `cls`."""
    name, _, kind = extension.rpartition(".")
    return name or kind


def decode_further(extension: str, data: bytes) -> dict[str, Value]:
    """The columns of one further part that is no picture; a safetensors part has one for each of its tensors.

    Raises:
        SampleError: with `reason`: bad-array, bad-tensors, bad-class or bad-text.
    """
    kind, name = extension.rpartition(".")[2], column_name(extension)
    assert kind not in PICTURES
    if kind == "npy":
        return {name: decode_npy(data)}
    if kind == "safetensors":
        prefix = "" if name == kind else f"{name}."
        return {prefix + tensor: array for tensor, array in decode_safetensors(data).items()}
    try:
        text = data.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise SampleError(f"decoding .{extension}: {error}", reason="bad-text") from error
    return {name: _class_number(text) if kind == "cls" else text}


def decode_npy(data: bytes) -> np.ndarray:
    """An array of plain numbers; its header's shape must fit the bytes that follow, so nothing is allocated for it.

    Format: NEP 1. Objects, structures and text are refused, and so is what NumPy would unpickle.

    Raises:
        SampleError: bad-array.
    """
    try:
        if data[:6] != _NPY_MAGIC:
            raise ValueError("it does not begin as an npy file")
        form = _HEADER_LENGTH[data[6]]
        (length,) = struct.unpack_from(form, data, 8)
        begin = 8 + struct.calcsize(form)
        if length > _MAX_HEADER:
            raise ValueError(f"a header of {length} bytes")
        header = ast.literal_eval(data[begin : begin + length].decode("latin1").strip())
        dtype, shape = np.dtype(header["descr"]), tuple(int(side) for side in header["shape"])
        if dtype.kind not in "biufc":
            raise ValueError(f"elements of type {header['descr']!r}; expected plain numbers")
        count, content = 1, memoryview(data)[begin + length :]
        for side in shape:
            if side < 0:
                raise ValueError(f"shape {shape}")
            count *= side
        if count * dtype.itemsize != len(content):
            raise ValueError(f"shape {shape} of {dtype} and {len(content)} bytes do not fit")
        array = np.frombuffer(content, dtype).reshape(shape, order="F" if header["fortran_order"] else "C")
        return array.astype(dtype.newbyteorder("="), copy=False)
    except (
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        SyntaxError,
        struct.error,
        RecursionError,
        MemoryError,
    ) as error:
        raise SampleError(f"decoding an npy part: {error}", reason="bad-array") from error


def decode_safetensors(data: bytes) -> dict[str, np.ndarray]:
    """The tensors by name; the library checks offsets and shapes against the size.

    Raises:
        SampleError: bad-tensors.
    """
    try:
        return load_tensors(data)
    except KeyError as error:
        raise SampleError(
            f"decoding a safetensors part: numbers of type {error} have no NumPy type; write float16 or float32",
            reason="bad-tensors",
        ) from error
    except (SafetensorError, ValueError) as error:
        raise SampleError(f"decoding a safetensors part: {error}", reason="bad-tensors") from error


def _class_number(text: str) -> int:
    try:
        number = int(text)
        if not -(2**63) <= number < 2**63:
            raise ValueError(f"{number} does not fit into 64 bits")
    except ValueError as error:
        raise SampleError(f"decoding a class: {error}", reason="bad-class") from error
    return number
