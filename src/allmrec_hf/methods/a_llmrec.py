"""A-LLMRec and its ablations, which differ from it in options only."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, ClassVar

from ..data.prepared import PreparedData
from ..evaluation.llm_ranker import ALLMRecRanker
from ..evaluation.protocol import Ranker
from ..files import folder_written_whole
from ..language_model import input_width
from ..modeling_allmrec import ALLMRecModel
from ..processing_allmrec import ALLMRecProcessor
from ..training.arguments import ALLMRecTrainingArguments
from ..training.llms import without_trust
from ..training.trainer import ALLMRecTrainer
from .llm_parts import on_device, required_llm, run_options
from .method import Method, Setting
from .shared import run_until

TRAINED_PARTS = ("aligner", "user_projector", "item_projector")
_HEAVY = shutil.ignore_patterns("step-*", "best-*", "backbone-train-validation*", ".*")


class ALLMRec(Method):
    """A-LLMRec (arXiv 2404.11343): stages 0 and 1 shared with its variants, stage 2 in the method's own folder.

    Its options are the settings of a run, so that every ablation is this method with other options, and
    `num_permutations`, the orders of the candidate list whose scores are averaged.

    Example:
        >>> "joint_dim" in ALLMRec.options and "backbone_name" not in ALLMRec.options
        True
    """

    name = "a-llmrec"
    reads_llm = True
    paper = "Kim et al., KDD 2024, arXiv 2404.11343"
    simplified = (
        "Ranks candidates by the likelihood of their titles in place of matching generated text. The preset says how "
        "the training differs; `paper` holds the published settings."
    )
    options: ClassVar[tuple[str, ...]] = (*run_options(), "num_permutations")

    def fit(self, data: PreparedData, setting: Setting) -> Ranker:
        """Train stage 2 on top of the shared stages and return the ranker by title likelihood."""
        return fit_run(data, setting, required_llm(self, setting), self.name)


def fit_run(data: PreparedData, setting: Setting, args: ALLMRecTrainingArguments, name: str) -> Ranker:
    """Return the ranker of a run with these settings, trained in the setting's folder."""
    model, processor = load_run(train_run(data, setting, args), args, setting.trust_remote_code)
    permutations = int(setting.options.get("num_permutations", 1))
    return ALLMRecRanker(model, processor, name=name, num_permutations=permutations)


def train_run(data: PreparedData, setting: Setting, args: ALLMRecTrainingArguments) -> Path:
    """Return the setting's folder with a run of all stages; a finished stage 2 is not trained again.

    Stages 0 and 1 come from the folder that all variants share which need the same of them.

    Raises:
        ALLMRecError: when the folder holds a stage 2 of other settings.
    """
    folder = setting.folder
    checkpoints = [folder / "checkpoints" / stage / "checkpoints" for stage in ("warm-start", "project")]
    started = any(path.exists() for path in checkpoints) or (folder / "project" / "done").exists()
    if not started:
        shared = run_until(data, setting, args, "align")
        with folder_written_whole(folder) as temporary:
            shutil.copytree(shared, temporary, dirs_exist_ok=True, ignore=_HEAVY)
    trust = setting.trust_remote_code
    trainer = ALLMRecTrainer(args=args.replaced(output_dir=folder), data=data, trust_remote_code=trust)
    trainer.train("project", resume_from_checkpoint=started)
    return folder


def load_run(
    folder: Path, args: ALLMRecTrainingArguments, trust_remote_code: bool = False
) -> tuple[ALLMRecModel, ALLMRecProcessor]:
    """Return the model, with its LLM as it was loaded for training, and the processor of a finished run."""
    options, trust = without_trust(args.llm.loading_options(), trust_remote_code)
    model = ALLMRecModel.from_pretrained(folder, trust_remote_code=trust, **options)
    return on_device(model), ALLMRecProcessor.from_pretrained(folder, trust_remote_code=trust)


def facts(ranker: Ranker) -> dict[str, Any]:
    """Return what a report says of a ranker's parts.

    Returns:
        `llm` (its name), `llm_parameters`, `d_llm` and `trained_parameters` beside the backbone's, as far as the ranker
        has a `model`; an empty mapping where it has none.
    """
    model: Any = getattr(ranker, "model", None)
    if model is None:
        return {}
    found: dict[str, Any] = {}
    language_model = getattr(model, "language_model", None)
    if language_model is not None:
        name = getattr(model.config, "base_model_name_or_path", None)
        gguf_file = getattr(model.config, "base_model_gguf_file", None)
        name = f"{name}/{gguf_file}" if gguf_file else name
        found = {
            "llm": Path(name).name if name and Path(name).exists() else name,
            "llm_parameters": sum(p.numel() for n, p in language_model.named_parameters() if "lora_" not in n),
            "d_llm": input_width(language_model),
        }
    parts = [getattr(model, name, None) for name in TRAINED_PARTS] if isinstance(model, ALLMRecModel) else [model]
    trained = [p.numel() for part in parts if part is not None for p in part.parameters() if p.requires_grad]
    return found | {"trained_parameters": sum(trained)}
