"""Where models answer: llama.cpp in this process, or Ollama; and which one is active."""
