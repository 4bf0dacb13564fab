"""`scorer-export`: a trained or published scorer as one safetensors file."""
