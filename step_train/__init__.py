"""Training of the step scorer and of the demo language model."""
