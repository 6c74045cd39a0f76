"""The three stages of a run, each from its folder's earlier stages to a loadable checkpoint."""

from __future__ import annotations

import copy
import logging
import math
from pathlib import Path
from typing import Any

import torch

from ..cf_encoder import CFEncoder
from ..configuration_allmrec import ALLMRecConfig
from ..errors import ALLMRecError
from ..language_model import context_length, num_layers
from ..modeling_allmrec import ALLMRecModel
from ..processing_allmrec import ALLMRecProcessor
from ..prompt import HistoryTemplate, LetterTemplate
from ..ranker import TitleLikelihood
from ..ranker_letter import LetterRanker
from ..ranker_likelihood import LIKELIHOOD_FORMS
from ..ranker_retrieval import RetrievalRanker, add_retrieval_head
from ..ranker_zero_shot import ZeroShot, add_zero_shot
from .alignment import AlignmentModule, AlignmentTask, check_text_table, text_embedding_table
from .backbone_training import train_backbone
from .cold_items import fill_item_table
from .cost import projection_cost, tell_projection_cost, warn_of_few_steps
from .devices import place, process_state
from .fusion_fitting import fit_rankers, take_rankers
from .loop import run_stage
from .presets import preset
from .pretrained_backbone import save_backbone
from .projection import ProjectionModule, ProjectionTask
from .retrieval_training import RetrievalModule, RetrievalTask
from .run import Run
from .run_checks import backbone_config
from .section_arguments import recipe_of, split_names
from .sharded_llm import is_asked_for, is_sharded, shard_language_model
from .task import StageResult
from .text_encoders import text_dim
from .warm_start import warm_start

logger = logging.getLogger(__name__)


def run_backbone(run: Run) -> None:
    """Train the backbone, or take the trained one."""
    if run.is_behind("backbone"):
        return
    run.note("backbone")
    cf_encoder = run.parts.backbone or _trained_here(run)
    if run.data.in_training:
        cf_encoder.config.in_training = run.data.in_training
    if run.writes:
        for directory in (run.output, run.output / "backbone"):  # the stage's own folder last: it says "finished"
            save_backbone(cf_encoder, run.data.catalog, directory)
            if directory == run.output:
                run.write_card(cf_encoder, None)
    process_state().wait_for_everyone()


def _trained_here(run: Run) -> CFEncoder:
    arguments = run.args.backbone.loop()
    plain = preset(run.args.preset, "backbone")
    taken = {
        name: value
        for name, value in recipe_of(run.model_type).items()
        if getattr(plain, name) != getattr(arguments, name) == value
    }
    if taken:
        words = ", ".join(f"{name} {value}" for name, value in taken.items())
        logger.info("stage backbone takes what suits %s: %s", run.model_type, words)
    folder, config = run.stage_folder("backbone"), backbone_config(run)
    texts = _texts_of_backbone(run) if config.text_components else None
    return train_backbone(run.data, config, arguments, folder, run.resume, callbacks=run.callbacks, texts=texts)


def _texts_of_backbone(run: Run) -> torch.Tensor:
    """Return `(N + 1, d_text)` of the frozen text encoder, of which the backbone takes `text_components`."""
    if run.args.align.fine_tune_text_encoder:
        raise ALLMRecError(
            "text_components are those of a text encoder that stays as it is; give --align.no-fine-tune-text-encoder "
            "too, or text_components 0"
        )
    if run.args.align.metric_for_best_model != "loss":
        raise ALLMRecError(
            "text_components rank new items, which stage 1 decodes no more, so it cannot be judged by their ranking; "
            "give --align.metric-for-best-model loss"
        )
    texts, encoder, table = run.data.catalog.texts(), run.load_text_encoder(), run.parts.text_table
    if table is None:
        return text_embedding_table(encoder, texts)
    check_text_table(table, encoder, texts)
    return table


def _check_text_components(cf_encoder: CFEncoder, texts: torch.Tensor | None) -> None:
    """Refuse a text encoder other than the one that the backbone's `text_components` are of; None: it is trained."""
    if cf_encoder.text_layer is None:
        return
    if texts is not None and texts.shape[1] == cf_encoder.config.text_dim:
        rows = cf_encoder.item_embeddings[1:, : cf_encoder.config.text_components]
        known = rows.abs().sum(dim=1) > 0  # zeros: an item that a trained backbone lacked
        found = cf_encoder.text_layer(texts[1:].to(rows))
        if (found - rows)[known].abs().median() < 0.01 * rows[known].abs().median():
            return
    raise ALLMRecError(
        f"the backbone has {cf_encoder.config.text_components} text_components of another text encoder than that of "
        "stage align, by which new items would get theirs; give the same --text-encoder, and "
        "--align.no-fine-tune-text-encoder"
    )


def run_alignment(run: Run) -> None:
    """Train the aligner, and the text encoder with it, around the frozen backbone."""
    if run.is_behind("align"):
        return
    run.note("align")
    arguments, project = run.args.align, run.args.project
    cf_encoder, text_encoder = run.load_backbone(), run.load_text_encoder()
    fine_tune, given = arguments.fine_tune_text_encoder, run.parts.text_encoder is not None
    if fine_tune and given:
        text_encoder = copy.deepcopy(text_encoder)  # the caller's stays as it is, also for another run
    config = ALLMRecConfig(
        cf_config=cf_encoder.config,
        joint_dim=arguments.joint_dim,
        text_dim=text_dim(text_encoder),
        text_encoder_name_or_path=None if given else arguments.text_encoder,
        text_encoder_included=fine_tune or given,
        item_embedding=project.item_embedding,
        score_normalization=project.score_normalization,
        in_training=run.data.in_training or None,
    )
    torch.manual_seed(arguments.seed)
    model = ALLMRecModel(config)
    model.cf_encoder.load_state_dict(cf_encoder.state_dict())
    model.cf_encoder.target_counts = cf_encoder.target_counts
    model.attach_text_encoder(text_encoder)
    texts, table = run.data.catalog.texts(), run.parts.text_table
    if table is not None and not fine_tune:
        check_text_table(table, text_encoder, texts)
    module = AlignmentModule(
        model.cf_encoder, model.aligner, texts, text_encoder, fine_tune, **arguments.loss(), text_table=table
    )
    _check_text_components(model.cf_encoder, None if fine_tune else module.embedding_table())
    judged, encoder_rate = arguments.metric_for_best_model, arguments.text_encoder_learning_rate
    task = AlignmentTask(module, run.data, arguments.positions, arguments, judged, encoder_rate)
    run_stage(task, arguments.loop(), run.stage_folder("align"), run.resume, callbacks=run.callbacks)
    fill_item_table(model.cpu(), run.data, module.embedding_table())
    if run.writes:
        model.save_pretrained(run.output)
        run.write_card(model.cf_encoder, model)
        model.save_pretrained(run.output / "align")
    process_state().wait_for_everyone()


def run_projection(run: Run) -> None:
    """Train the projectors around the frozen LLM."""
    if run.is_behind("project"):
        return
    run.note("project")
    arguments, device = run.args.project, process_state().device
    model = ALLMRecModel.from_pretrained(run.output / "align", language_model=None)
    processor = _attach_llm(run, model)
    _shard_where_asked(run, model)
    _keep_other_forms(run, model, processor)
    model.config.ranker = _first_ranker(run)
    if arguments.gradient_checkpointing:
        model.checkpoint_activations()
    _compile_where_asked(run, model)
    loop = arguments.loop()
    module = ProjectionModule(model, arguments.projection_loss, arguments.listwise_temperature)
    sizes = (arguments.num_candidates, loop, arguments.max_tokens_per_batch)
    task = ProjectionTask(module, processor, run.data, arguments.targets, *sizes)
    if arguments.warm_start_steps:
        warm_start(task, run.data, arguments, run.stage_folder("warm-start"), run.resume)
    model.user_projector.requires_grad_(run.prompt.has_user_slot)  # what no prompt shows is not trained
    model.item_projector.requires_grad_(run.prompt.has_item_slots)
    place(module, device)
    cost = None if is_sharded(module) else projection_cost(task, loop, device)  # it measures what all must do alike
    if run.writes and cost is not None:
        tell_projection_cost(cost, task, loop)
    result = run_stage(task, loop, run.stage_folder("project"), run.resume, callbacks=run.callbacks)
    if run.writes and result.stopped_by == "time_limit":
        warn_of_few_steps(result.steps, loop, None if cost is None else cost.step_seconds)
    if run.writes:
        processor.save_pretrained(run.output)
        model.save_pretrained(run.output, include_llm=run.args.llm.include_llm)
        run.write_card(model.cf_encoder, model)
        run.mark_done("project")
    process_state().wait_for_everyone()


def run_retrieval(run: Run) -> None:
    """Train the head of the ranker `retrieval` around the frozen LLM, beside what the checkpoint has already."""
    if run.is_behind("retrieve"):
        return
    run.note("retrieve")
    arguments = run.args.retrieve
    model = ALLMRecModel.from_pretrained(run.output, language_model=None)
    if run.is_done("project"):
        model.attach_language_model(run.load_llm()[0])
        processor = ALLMRecProcessor.from_pretrained(run.output, trust_remote_code=run.trust)
    else:
        processor = _attach_llm(run, model)
        model.config.rankers = {**(model.config.rankers or {}), "likelihood": {"trained": False}}
    _shard_where_asked(run, model)
    _compile_where_asked(run, model)
    rankers = dict(model.config.rankers or {})
    for stale in ("fusion", "retrieval"):
        rankers.pop(stale, None)
    model.config.rankers = rankers
    model.config.ranker = RetrievalRanker.kind
    if run.is_done("project"):
        _keep_other_forms(run, model, processor)
        model.config.ranker = _first_ranker(run)
    template = HistoryTemplate.for_domain(run.data.domain, run.data.verbs, arguments.history_titles)
    settings = {name: getattr(arguments, name) for name in ("dim", "history_in_prompt")}
    depths = arguments.layers_of(num_layers(model.require_language_model()))
    heads = {}
    for layers in depths:
        folder = run.stage_folder("retrieve") / ("" if len(depths) == 1 else f"layers-{layers}")
        result = _train_head(
            run, model, processor, {**settings, "num_llm_layers": layers, "prompt": template.to_dict()}, folder
        )
        best = -math.inf if result.best is None else result.best
        heads[layers] = (best, model.retrieval_head, model.config.rankers)
    chosen = max(depths, key=lambda layers: heads[layers][0])
    _, model.retrieval_head, model.config.rankers = heads[chosen]
    if len(depths) > 1 and run.writes:
        told = ", ".join(f"{layers}: {heads[layers][0]:.4f}" for layers in depths)
        logger.info(
            "retrieval runs the first %s layers of the LLM; NDCG@10 on validation users by depth: %s", chosen, told
        )
    if run.writes or is_sharded(model):
        model.eval()
        RetrievalRanker(model, processor).item_table()  # every item once; a request makes its user's vector only
    if run.writes:
        _save(run, model, processor, "retrieve")
    process_state().wait_for_everyone()


def _train_head(
    run: Run, model: ALLMRecModel, processor: ALLMRecProcessor, settings: dict[str, Any], folder: Path
) -> StageResult:
    """Give the model a fresh head of the ranker `retrieval` and train it."""
    arguments = run.args.retrieve
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(arguments.seed)
        add_retrieval_head(model, settings)
    module = RetrievalModule(model, processor, arguments.distillation_weight, arguments.uniformity_weight)
    loop = arguments.loop()
    task = RetrievalTask(module, run.data, loop, arguments.positions, arguments.num_negatives)
    place(module, process_state().device)
    return run_stage(task, loop, folder, run.resume, callbacks=run.callbacks)


def _shard_where_asked(run: Run, model: ALLMRecModel) -> None:
    """Leave this process its part of the LLM, where the configuration of `accelerate launch` says so."""
    if not is_asked_for():
        return
    if run.args.llm.include_llm:
        raise ALLMRecError(
            "--include-llm cannot save an LLM of which each process holds a part; leave it out: the checkpoint names "
            "the LLM"
        )
    shard_language_model(model.require_language_model())


def run_ranking(run: Run) -> None:
    """Fit the ranker `fusion` on validation users, and choose what ranks by default."""
    if run.is_behind("rank"):
        return
    run.note("rank")
    if run.writes:
        trained = run.is_done("project") or run.is_done("retrieve")
        source = run.output if trained else run.output / "align"  # an LLM of before has no part in what is fitted anew
        model = ALLMRecModel.from_pretrained(source, language_model=None, trust_remote_code=run.trust)
        if trained:
            model.attach_language_model(run.load_llm()[0])
            processor = ALLMRecProcessor.from_pretrained(run.output, trust_remote_code=run.trust)
        elif run.args.rank.asks_llm:
            processor = _attach_llm(run, model)
            model.config.rankers = {**(model.config.rankers or {}), "likelihood": {"trained": False}}
        else:
            processor = _without_llm(run, model)
        model.config.rankers = {
            name: kept for name, kept in (model.config.rankers or {}).items() if name != ZeroShot.kind
        }
        if ZeroShot.kind in split_names(run.args.rank.rankers):
            add_zero_shot(model, run.data.domain, run.data.verbs, run.args.project.history_in_prompt)
        if run.parts.text_encoder is not None and not run.args.align.fine_tune_text_encoder:
            model.attach_text_encoder(run.parts.text_encoder)
        place(model, process_state().device)
        texts = None if run.args.align.fine_tune_text_encoder else run.parts.text_table
        if texts is None:
            texts = text_embedding_table(model.text_encoder, run.data.catalog.texts())
        project = run.args.project if run.is_done("project") else None
        if project is not None:
            _keep_other_forms(run, model, processor)
        if run.parts.fitted is None:
            fit_rankers(model, processor, run.data, texts, run.args.rank, project)
        else:
            take_rankers(model, processor, texts, run.parts.fitted)
        _save(run, model, processor, "rank")
    process_state().wait_for_everyone()


def _keep_other_forms(run: Run, model: ALLMRecModel, processor: ALLMRecProcessor) -> None:
    """Note in the model by what else than `likelihood` it ranks after stage 2, as far as the run names it.

    Raises:
        ALLMRecError: when it is to rank by letters, and they are no single tokens of the LLM's tokenizer.
    """
    named = split_names(run.args.rank.rankers)
    optional = (*LIKELIHOOD_FORMS, LetterRanker.kind)
    rankers = {name: kept for name, kept in (model.config.rankers or {}).items() if name not in optional}
    rankers |= {name: {} for name in LIKELIHOOD_FORMS if name in named}
    if LetterRanker.kind in named:
        rankers[LetterRanker.kind] = {"prompt": LetterTemplate().to_dict()}
    model.config.rankers = rankers
    if LetterRanker.kind in named:
        LetterRanker(model, processor)


def _first_ranker(run: Run) -> str:
    """Return what ranks by default after stage 2, until the stage `rank` has compared the rankers."""
    kinds = (TitleLikelihood.kind, *LIKELIHOOD_FORMS, LetterRanker.kind)
    named = split_names(run.args.rank.rankers)
    return next((kind for kind in kinds if kind in named), TitleLikelihood.kind)


def _save(run: Run, model: ALLMRecModel, processor: ALLMRecProcessor, stage: str) -> None:
    processor.save_pretrained(run.output)
    model.save_pretrained(run.output, include_llm=run.args.llm.include_llm)
    run.write_card(model.cf_encoder, model)
    run.mark_done(stage)


def _compile_where_asked(run: Run, model: ALLMRecModel) -> None:
    """Compile the layers of the LLM, where the settings say so."""
    if not run.args.llm.torch_compile:
        return
    if is_sharded(model):
        raise ALLMRecError("an LLM that is sharded is not compiled; leave out --llm.torch-compile")
    model.compile_language_model()


def _attach_llm(run: Run, model: ALLMRecModel) -> ALLMRecProcessor:
    """Put the LLM and fresh projectors into the model, and return its processor."""
    arguments = run.args.project
    language_model, tokenizer = run.load_llm()
    torch.manual_seed(arguments.seed)
    model.config.base_model_name_or_path = run.args.llm.name
    model.config.base_model_revision = run.args.llm.revision
    model.config.base_model_gguf_file = run.args.llm.gguf_file
    model.config.base_model_gguf_packed = run.args.llm.gguf_packed and run.args.llm.gguf_file is not None
    for name in ("item_embedding", "score_normalization", "projector", "projector_tokens"):
        setattr(model.config, name, getattr(arguments, name))
    model.config.item_embedding_seed = arguments.seed
    model.attach_language_model(language_model)
    processor = ALLMRecProcessor(
        tokenizer,
        run.prompt.to_dict(),
        history_in_prompt=arguments.history_in_prompt,
        max_title_tokens=arguments.max_title_tokens,
        max_history_length=model.cf_encoder.config.max_history_length,
        max_length=context_length(model.language_model),
    )
    processor.catalog = run.data.catalog
    model.config.tokenizer_fingerprint = processor.fingerprint
    return processor


def _without_llm(run: Run, model: ALLMRecModel) -> ALLMRecProcessor:
    """Return the processor of a model that no LLM is attached to."""
    processor = ALLMRecProcessor(
        None, run.prompt.to_dict(), max_history_length=model.cf_encoder.config.max_history_length
    )
    processor.catalog = run.data.catalog
    return processor


TRAIN = {
    "backbone": run_backbone,
    "align": run_alignment,
    "project": run_projection,
    "retrieve": run_retrieval,
    "rank": run_ranking,
}
