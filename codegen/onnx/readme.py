"""README.md of an ONNX export: what it is and how to run it."""

from __future__ import annotations

from codegen.onnx.body import OPSET
from lutllm.artifact import Artifact
from lutllm.lut_linear import LutLinear
from lutllm.version import __version__

_MODEL = """\
# {name} as ONNX

Written by lutllm {version} from the artifact with hash
`{digest}`. Standard operators of opset {opset}; every LUT linear is a call of a function
`LutLinear_...` of this model, which a viewer such as Netron opens. Needs onnxruntime only:

```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
ids = np.array([[1, 2, 3]])  # token ids of tokenizer.json
cache = {{
    value.name: np.zeros((1, {kv_heads}, 0, {head_dim}), np.float32)
    for value in session.get_inputs()[1:]
}}
for _ in range(8):
    logits, *present = session.run(None, {{"input_ids": ids, **cache}})
    cache = dict(zip(cache, present))
    ids = logits[:, -1:].argmax(-1)
    print(ids[0, 0])
```
"""

_LINEAR = """\
# {layer} as ONNX

Written by lutllm {version} from the artifact with hash
`{digest}`. Standard operators of opset {opset}. Input x f32[T, D]; outputs y f32[T, M], acc, the
integer accumulators i32[T, M], and codes: of the activations u8[T, stages, positions], or the
integer activations i8[T, positions, vec_len] in scheme "weight".

```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
x = np.random.default_rng(0).standard_normal((2, {in_features})).astype(np.float32)
y, acc, codes = session.run(None, {{"x": x}})
print(acc)
```
"""


def model_readme(artifact: Artifact, digest: str) -> str:
    """The text for a whole model."""
    return _MODEL.format(
        name=artifact.path.resolve().name,
        kv_heads=artifact.model.num_key_value_heads,
        head_dim=artifact.model.head_dim,
        version=__version__,
        digest=digest,
        opset=OPSET,
    )


def linear_readme(linear: LutLinear, digest: str) -> str:
    """The text for one linear."""
    return _LINEAR.format(
        layer=linear.name,
        in_features=linear.in_features,
        version=__version__,
        digest=digest,
        opset=OPSET,
    )
