"""Export what other runtimes serve well: graphs for ONNX and OpenVINO, vectors for indexes, prompts for vLLM."""
