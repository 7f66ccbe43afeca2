"""lutllm in transformers: after `import lutllm.hf`, from_pretrained loads artifacts.

    import lutllm.hf
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained("qwen-lut")
    tokenizer = AutoTokenizer.from_pretrained("qwen-lut")

    module     LutLinear as a torch module over the Numba kernels
    quantizer  the quantization method "lutllm": puts LutLinear where an artifact has one
    models     config and model classes, one pair for each architecture

Float steps are those of transformers, in float32; linears are lutllm's kernels, on the CPU.
"""

try:
    import transformers as _transformers  # noqa: F401
except ImportError as cause:
    raise ImportError(
        'lutllm.hf needs the package transformers; run: pip install "lutllm[hf]"'
    ) from cause

from lutllm.hf.models import (
    LutLLMLlamaConfig,
    LutLLMLlamaForCausalLM,
    LutLLMQwen2Config,
    LutLLMQwen2ForCausalLM,
    LutLLMQwen3Config,
    LutLLMQwen3ForCausalLM,
)
from lutllm.hf.module import LutLinear
from lutllm.hf.quantizer import LutLLMConfig, LutQuantizer

__all__ = [
    "LutLLMConfig",
    "LutLLMLlamaConfig",
    "LutLLMLlamaForCausalLM",
    "LutLLMQwen2Config",
    "LutLLMQwen2ForCausalLM",
    "LutLLMQwen3Config",
    "LutLLMQwen3ForCausalLM",
    "LutLinear",
    "LutQuantizer",
]
