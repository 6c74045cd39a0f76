"""Entry for transformers' trust_remote_code=True: the code is the installed package allmrec-hf."""

from allmrec_hf import ALLMRecConfig, ALLMRecModel, ALLMRecProcessor, RecommendationPipeline

__all__ = ["ALLMRecConfig", "ALLMRecModel", "ALLMRecProcessor", "RecommendationPipeline"]
