"""The ways to answer a question with many traces, and to choose which of them stop."""
