"""Nodes of an ONNX graph or function under construction."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

#: The first opset with Attention, RMSNormalization, RotaryEmbedding and Swish; IR of that release.
OPSET = 24
IR_VERSION = 11
#: Domain of the local functions.
DOMAIN = "ai.lutllm"


class Body:
    """Adds one node per call and names its outputs.

    g = Body()
    y = g("Add", "a", "b")            # one output: its name
    q, k = g("Split", y, outputs=2, axis=-1, num_outputs=2)
    """

    def __init__(self, prefix: str = ""):
        self.nodes: list[onnx.NodeProto] = []
        self._prefix = prefix
        self._count = 0

    def __call__(
        self,
        op: str,
        *inputs: str,
        outputs: int | list[str] = 1,
        name: str = "",
        domain: str = "",
        **attributes: Any,
    ) -> Any:
        """Add node `op`. outputs: how many, or their names ("" leaves one out).

        Returns the name of a single output, else a list of names.
        """
        if isinstance(outputs, int):
            self._count += 1
            stem = f"{self._prefix}{op}_{self._count}"
            names = [stem] if outputs == 1 else [f"{stem}_{i}" for i in range(outputs)]
        else:
            names = outputs
        self.nodes.append(
            helper.make_node(op, list(inputs), names, name=name, domain=domain, **attributes)
        )
        return names[0] if len(names) == 1 else names

    def constant(self, value: Any, dtype: Any = None) -> str:
        """A Constant node holding `value` as an array of `dtype`."""
        return self("Constant", value=numpy_helper.from_array(np.array(value, dtype)))

    def cast(self, value: str, to: int) -> str:
        """to: a value of onnx.TensorProto, for example TensorProto.FLOAT."""
        return self("Cast", value, to=to)

    def reshape(self, value: str, *shape: int) -> str:
        """0 keeps a dimension, -1 takes the rest."""
        return self("Reshape", value, self.constant(shape, np.int64))
