"""LLM-Only: rank with the frozen LLM by a text prompt, without any training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..cf_sasrec import SASRecConfig
from ..configuration_allmrec import ALLMRecConfig
from ..data.prepared import PreparedData
from ..errors import ALLMRecError
from ..evaluation.llm_ranker import ALLMRecRanker
from ..evaluation.protocol import History, Ranker
from ..evaluation.rankers import PopularityRanker
from ..modeling_allmrec import ALLMRecModel
from ..training.arguments import ALLMRecTrainingArguments
from .llm_parts import LLM_OPTIONS, Scores, chosen_llm, llm_processor, on_device, own_prompt, required_llm, reranked
from .method import Method, Setting

UNUSED_WIDTH = 1  # of the parts around the LLM, whose vectors a prompt without slots never asks for


class WordsRanker(ALLMRecRanker):
    """Rank by the LLM's likelihood of titles after a prompt without vectors.

    Over the whole catalogue it orders the most popular unseen items, since words alone retrieve nothing.

    Args:
        data: Its training part gives the popularity.
        **values: Arguments of `ALLMRecRanker`.
    """

    def __init__(self, data: PreparedData, **values: Any) -> None:
        super().__init__(**values)
        self.popularity = PopularityRanker(data.item_counts("train"))

    def retrieve(self, histories: Sequence[History], top_k: int) -> tuple[NDArray[np.int64], Scores]:
        """Return the most popular unseen items, the first `num_ranked` in the LLM's order."""
        return reranked(self, self.popularity, histories, top_k, self.num_ranked)


class LLMOnly(Method):
    """LLM-Only, the baseline of arXiv 2404.11343: the paper's prompt without its vectors, to an untrained-on LLM."""

    name = "llm-only"
    reads_llm = True
    seeded: ClassVar[bool] = False
    paper = "Kim et al., KDD 2024, arXiv 2404.11343, baseline LLM-Only"
    simplified = (
        "Ranks candidates by the likelihood of their titles in place of matching generated text; over the whole "
        "catalogue it reorders the most popular items."
    )
    options: ClassVar[tuple[str, ...]] = (
        *LLM_OPTIONS,
        *("history_in_prompt", "prompt", "score_normalization", "num_permutations"),
        *("max_title_tokens", "candidates_in_prompt", "answer_boundary"),
    )

    def fit(self, data: PreparedData, setting: Setting) -> Ranker:
        """Return the ranker; nothing is trained."""
        return words_ranker(data, required_llm(self, setting), self.name, setting)


def words_ranker(
    data: PreparedData,
    args: ALLMRecTrainingArguments,
    name: str,
    setting: Setting,
    kind: type[WordsRanker] = WordsRanker,
) -> WordsRanker:
    """Return the ranker by an LLM that reads words alone.

    Args:
        data: Catalogue and popularity.
        args: The LLM and the prompt, whose slots are left out.
        name: The ranker's name.
        setting: Its option `num_permutations`.
        kind: How the LLM is asked.

    Raises:
        ALLMRecError: when titles are to be scored by what vectors add, of which there are none.
    """
    if args.project.score_normalization == "vector_gain":
        raise ALLMRecError(f"the prompt of {name} has no vectors, so score_normalization vector_gain would score all 0")
    language_model, tokenizer = chosen_llm(args, setting)
    config = ALLMRecConfig(
        cf_config=SASRecConfig(num_items=data.num_items, hidden_size=UNUSED_WIDTH, num_layers=1),
        joint_dim=UNUSED_WIDTH,
        text_dim=UNUSED_WIDTH,
        base_model_name_or_path=args.llm.name,
        base_model_gguf_file=args.llm.gguf_file,
        score_normalization=args.project.score_normalization,
    )
    model = ALLMRecModel(config)
    model.attach_language_model(language_model)
    model.requires_grad_(False)
    template = own_prompt(args, data).without_vectors()
    return kind(
        data,
        model=on_device(model),
        processor=llm_processor(tokenizer, language_model, template, data, args),
        name=name,
        num_permutations=int(setting.options.get("num_permutations", 1)),
    )
