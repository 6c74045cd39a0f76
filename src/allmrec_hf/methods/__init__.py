"""Every method behind one evaluator: A-LLMRec, its backbones, the baselines of the paper and the controls."""
