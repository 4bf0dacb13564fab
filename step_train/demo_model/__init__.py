"""`step-train demo-model`: the demo language model, trained from scratch."""
