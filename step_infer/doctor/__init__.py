"""`step-doctor`: whether the adapter fits the installed vLLM."""
