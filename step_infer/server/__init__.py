"""What runs inside vLLM's OpenAI server, beside its own routes."""
