"""allmrec-hf: a frozen large language model that recommends with the knowledge of a collaborative-filtering model.

Importing this package registers the Auto classes and the task `pipeline("recommendation")`. What they name is loaded
when it is first used: the import itself loads neither torch nor a model class.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._registration import DEFAULT_MODEL_VARIABLE, DEMO_CHECKPOINT, register_when_needed
from ._version import __version__
from .cf_built_in import BUILT_IN

if TYPE_CHECKING:  # for editors and type checkers; at run time names are loaded when they are asked for
    from .benchmark.runner import Place as Place
    from .benchmark.runner import run_suite as run_suite
    from .benchmark.runner import write_report as write_report
    from .benchmark.suite_parser import load_suite as load_suite
    from .catalog import ItemCatalog as ItemCatalog
    from .cf_bprmf import BPRMFConfig as BPRMFConfig
    from .cf_bprmf import BPRMFModel as BPRMFModel
    from .cf_bsarec import BSARecConfig as BSARecConfig
    from .cf_bsarec import BSARecModel as BSARecModel
    from .cf_encoder import CFEncoder as CFEncoder
    from .cf_encoder import CFEncoderConfig as CFEncoderConfig
    from .cf_encoder import register_cf_encoder as register_cf_encoder
    from .cf_gru4rec import GRU4RecConfig as GRU4RecConfig
    from .cf_gru4rec import GRU4RecModel as GRU4RecModel
    from .cf_hstu import HSTUConfig as HSTUConfig
    from .cf_hstu import HSTUModel as HSTUModel
    from .cf_lightgcn import LightGCNConfig as LightGCNConfig
    from .cf_lightgcn import LightGCNModel as LightGCNModel
    from .cf_ligr import LiGRConfig as LiGRConfig
    from .cf_ligr import LiGRModel as LiGRModel
    from .cf_ncf import NCFConfig as NCFConfig
    from .cf_ncf import NCFModel as NCFModel
    from .cf_nextitnet import NextItNetConfig as NextItNetConfig
    from .cf_nextitnet import NextItNetModel as NextItNetModel
    from .cf_recbole_sasrec import RecBoleSASRecConfig as RecBoleSASRecConfig
    from .cf_recbole_sasrec import RecBoleSASRecModel as RecBoleSASRecModel
    from .cf_sasrec import SASRecConfig as SASRecConfig
    from .cf_sasrec import SASRecModel as SASRecModel
    from .configuration_allmrec import ALLMRecConfig as ALLMRecConfig
    from .data.data_report import format_report as format_report
    from .data.new_items import add_items as add_items
    from .data.prepare import prepare as prepare
    from .data.prepared import PreparedData as PreparedData
    from .data.synthetic import SyntheticWorld as SyntheticWorld
    from .errors import ALLMRecError as ALLMRecError
    from .errors import CheckpointError as CheckpointError
    from .errors import DataError as DataError
    from .evaluation.evaluator import evaluate as evaluate
    from .evaluation.geometry import joint_embedding_geometry as joint_embedding_geometry
    from .evaluation.llm_ranker import ALLMRecRanker as ALLMRecRanker
    from .evaluation.rankers import BackboneRanker as BackboneRanker
    from .evaluation.rankers import PopularityRanker as PopularityRanker
    from .evaluation.rankers import TextCosineRanker as TextCosineRanker
    from .evaluation.scenarios import scenario as scenario
    from .evaluation.significance import difference_interval as difference_interval
    from .evaluation.significance import holm as holm
    from .evaluation.significance import mcnemar as mcnemar
    from .evaluation.significance import randomisation_test as randomisation_test
    from .explaining.explanation import explain as explain
    from .explaining.explanation import write_explanation as write_explanation
    from .explaining.picture import draw_explanation as draw_explanation
    from .explaining.tasks import TASKS as TASKS
    from .explaining.tasks import TextTask as TextTask
    from .explaining.tasks import answer_scores as answer_scores
    from .explaining.tasks import choice_task as choice_task
    from .explaining.tasks import generate_answers as generate_answers
    from .exporting.export_checkpoint import ExportOptions as ExportOptions
    from .exporting.export_checkpoint import export_checkpoint as export_checkpoint
    from .exporting.vector_indexes import ExportedIndex as ExportedIndex
    from .hub.card import read_card as read_card
    from .hub.card import write_card as write_card
    from .hub.publish import push_checkpoint as push_checkpoint
    from .modeling_allmrec import ALLMRecModel as ALLMRecModel
    from .pipeline_recommendation import RecommendationPipeline as RecommendationPipeline
    from .processing_allmrec import ALLMRecProcessor as ALLMRecProcessor
    from .prompt import PromptTemplate as PromptTemplate
    from .ranking import hit_at_k as hit_at_k
    from .ranking import ndcg_at_k as ndcg_at_k
    from .training.arguments import ALLMRecTrainingArguments as ALLMRecTrainingArguments
    from .training.fair import fair_backbone as fair_backbone
    from .training.importing import import_backbone as import_backbone
    from .training.section_arguments import AlignArguments as AlignArguments
    from .training.section_arguments import BackboneArguments as BackboneArguments
    from .training.section_arguments import LLMArguments as LLMArguments
    from .training.section_arguments import ProjectArguments as ProjectArguments
    from .training.trainer import ALLMRecTrainer as ALLMRecTrainer

_PUBLIC = {
    "ALLMRecConfig": "configuration_allmrec",
    "ALLMRecError": "errors",
    "ALLMRecModel": "modeling_allmrec",
    "ALLMRecProcessor": "processing_allmrec",
    "ALLMRecRanker": "evaluation.llm_ranker",
    "ALLMRecTrainer": "training.trainer",
    "ALLMRecTrainingArguments": "training.arguments",
    "AlignArguments": "training.section_arguments",
    "BackboneArguments": "training.section_arguments",
    "CFEncoder": "cf_encoder",
    "CFEncoderConfig": "cf_encoder",
    "BackboneRanker": "evaluation.rankers",
    "CheckpointError": "errors",
    "DataError": "errors",
    "ExportOptions": "exporting.export_checkpoint",
    "ExportedIndex": "exporting.vector_indexes",
    "ItemCatalog": "catalog",
    "LLMArguments": "training.section_arguments",
    "Place": "benchmark.runner",
    "PopularityRanker": "evaluation.rankers",
    "PreparedData": "data.prepared",
    "ProjectArguments": "training.section_arguments",
    "PromptTemplate": "prompt",
    "RecommendationPipeline": "pipeline_recommendation",
    "SyntheticWorld": "data.synthetic",
    "TASKS": "explaining.tasks",
    "TextCosineRanker": "evaluation.rankers",
    "TextTask": "explaining.tasks",
    "add_items": "data.new_items",
    "answer_scores": "explaining.tasks",
    "choice_task": "explaining.tasks",
    "difference_interval": "evaluation.significance",
    "draw_explanation": "explaining.picture",
    "evaluate": "evaluation.evaluator",
    "explain": "explaining.explanation",
    "export_checkpoint": "exporting.export_checkpoint",
    "fair_backbone": "training.fair",
    "format_report": "data.data_report",
    "generate_answers": "explaining.tasks",
    "hit_at_k": "ranking",
    "holm": "evaluation.significance",
    "import_backbone": "training.importing",
    "joint_embedding_geometry": "evaluation.geometry",
    "load_suite": "benchmark.suite_parser",
    "mcnemar": "evaluation.significance",
    "ndcg_at_k": "ranking",
    "prepare": "data.prepare",
    "push_checkpoint": "hub.publish",
    "randomisation_test": "evaluation.significance",
    "read_card": "hub.card",
    "register_cf_encoder": "cf_encoder",
    "run_suite": "benchmark.runner",
    "scenario": "evaluation.scenarios",
    "write_card": "hub.card",
    "write_explanation": "explaining.explanation",
    "write_report": "benchmark.runner",
    **{f"{stem}{kind}": module for module, stem in BUILT_IN.values() for kind in ("Config", "Model")},
}

__all__ = ["DEFAULT_MODEL_VARIABLE", "DEMO_CHECKPOINT", "__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)


register_when_needed()
