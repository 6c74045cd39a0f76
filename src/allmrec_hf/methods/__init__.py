"""The methods that the benchmark compares: A-LLMRec, its backbones, the baselines of the paper and the controls."""
