"""Co-quantization: codebooks, error feedback, tables."""
