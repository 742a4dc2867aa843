"""A run in another form: an ONNX graph, or its adapters merged into the encoder."""
