"""Reading a float checkpoint: a Hugging Face folder, a GGUF file or a hub id.

    checkpoint = open_checkpoint("models/SmolLM2-135M")
    weight = checkpoint.tensor("model.layers.0.mlp.down_proj.weight")

Opening reads headers only and refuses what lutllm cannot quantize. Tensors are read one at a time.
"""

from lutllm.checkpoint.base import Checkpoint, tensor_shapes
from lutllm.checkpoint.opener import open_checkpoint

__all__ = ["Checkpoint", "open_checkpoint", "tensor_shapes"]
