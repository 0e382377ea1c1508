"""Deployed models: where they run (`llamacpp`, `ollama`), how to talk to one (`chat`), and which
one is active (`registry`)."""
