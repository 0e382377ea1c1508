"""run → GGUF and Modelfile, checked against the run's own logits.

Flow: `fuse` writes a standalone folder, `gguf` converts it (`tokenizer`, `quantize`), `parity`
compares the file in llama.cpp (`llamacpp`) with the run in MLX, `modelfile` writes it for Ollama.
"""
