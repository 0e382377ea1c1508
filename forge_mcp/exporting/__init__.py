"""run → GGUF and Modelfile, checked against the run's own logits.

Flow: `reference` measures the run, `fuse` writes the merged model by rows (`tensors`), `gguf`
converts that folder (`architectures`, `rope`, `tokenizer`, `quantize`), `parity` holds the file in
llama.cpp (`llamacpp`) against the reference, `report` says what was found, `modelfile` writes it
for Ollama. `peft` and `gguf_lora` write the adapters alone.
"""
