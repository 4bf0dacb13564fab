"""`step-train extract`: hidden states by a forward pass, for traces made elsewhere."""
