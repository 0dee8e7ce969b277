"""Read an inner layer of an ONNX model that only gives its last one out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float

from imprint.errors import BackboneError

_LENGTH_DELIMITED = 2  # protobuf's wire type of strings and messages
# Field numbers of onnx.proto3: ModelProto.graph, GraphProto.output, ValueInfoProto.name.
_GRAPH, _OUTPUT, _NAME = 7, 12, 1


def with_output(model: bytes, tensor: str) -> bytes:
    """The serialized model with one more graph output, the tensor of that name.

    Protocol buffers merge a message that is written twice: its repeated fields are joined. So a graph that holds
    nothing but the new output, written after the model, adds that output, and the onnx package is not needed.
    Source: Protocol Buffers, "Encoding", section "Last One Wins".
    """
    return model + _field(_GRAPH, _field(_OUTPUT, _field(_NAME, tensor.encode())))


def _field(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


class OnnxFeatures:
    """A layer's output, one flat vector for each input."""

    def __init__(self, path: Path, layer: str, *, threads: int = 1) -> None:
        """
        Raises:
            BackboneError: there is no such file, or it has no such layer.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            model = with_output(path.read_bytes(), layer)
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except OSError as error:
            raise BackboneError(f"loading the feature network {path}: {error.strerror}") from error
        except Exception as error:  # onnxruntime's own errors share no base class
            raise BackboneError(
                f"loading the feature network {path}: {error}; expected an ONNX model with a layer {layer!r}"
            ) from error
        self._input = self._session.get_inputs()[0].name
        self._layer = layer

    def __call__(self, inputs: Float[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n width"]:
        (values,) = self._session.run([self._layer], {self._input: inputs})
        return values.reshape(len(inputs), -1)
