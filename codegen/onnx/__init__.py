"""An artifact as an ONNX model that stock onnxruntime runs: a portable, independent oracle.

body      nodes under construction
steps     each function of `lutllm.intmath` in standard operators
linear    the local function `LutLinear` and its arrays
weights   arrays written to the external data file as they are added
decoder   the whole model as a graph, with a KV cache
export    the folder: model, data, tokenizer, README
run       a session beside the emulator: differences and flipped codes
"""
