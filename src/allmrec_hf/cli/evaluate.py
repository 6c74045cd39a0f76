"""`allmrec evaluate`: Hit@k, NDCG@k and MRR of a model beside its backbone alone and popularity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..stored_values import json_value
from .loading import (
    STAGE_1_ONLY,
    GgufFileOption,
    LlmOption,
    OtherLlmOption,
    TrustOption,
    an,
    checkpoint_errors,
    checkpoint_type,
    located_checkpoint,
    named_llm,
)
from .many_users import MaxTokensOption
from .options import ConfigOption, JsonOption, PermutationsOption, SeedOption, emit, say, stderr, user_errors

if TYPE_CHECKING:
    from ..catalog import ItemCatalog
    from ..data.prepared import PreparedData
    from ..evaluation.protocol import Ranker


Protocol = Literal["candidates", "full", "paper"]
Split = Literal["test", "validation"]


def load_rankers(
    model: str,
    data: PreparedData,
    batch_size: int,
    num_permutations: int,
    fair: bool = False,
    whole: bool = False,
    llm: str | None = None,
    trust_remote_code: bool = False,
    allow_other_llm: bool = False,
    names: Sequence[str] = (),
    max_tokens_per_batch: int | None = None,
    split: Split = "test",
) -> list[Ranker]:
    """Return the model's rankers, its backbone alone and popularity, for a checkpoint of either kind.

    Args:
        model: Folder, Hub id or `demo`.
        data: Prepared data.
        batch_size: Users that the LLM reads at once.
        num_permutations: Candidate orders whose scores are averaged.
        fair: Whether to add the backbone trained on train + validation, which stage 2 has seen.
        whole: Whether the whole catalogue will be ranked; the checkpoint's may then not be larger than the data's.
        llm: An LLM in place of the one that the checkpoint names.
        trust_remote_code: Run code that comes with it.
        allow_other_llm: Take an LLM that is not the one of the training.
        names: Rankers of the checkpoint; all that were trained for it where none is given.
        max_tokens_per_batch: Tokens that the LLM reads at once.
        split: Whose targets will be ranked.

    Raises:
        CheckpointError: when the checkpoint cannot be loaded, its catalogue is not that of the data, or it was trained
            on the targets.
    """
    from transformers import AutoConfig

    from ..catalog import CATALOG_FILE, ItemCatalog
    from ..cf_encoder import MODEL_TYPE_PREFIX, cf_encoder_types
    from ..errors import CheckpointError
    from ..evaluation.llm_ranker import checkpoint_rankers
    from ..evaluation.rankers import BackboneRanker, PopularityRanker
    from ..modeling_allmrec import ALLMRecModel
    from ..processing_allmrec import ALLMRecProcessor
    from ..ranker_built_in import can_rank
    from ..training.devices import place, process_state
    from ..training.fair import fair_backbone
    from ..training.pretrained_backbone import load_backbone_alone, load_trained_backbone

    with checkpoint_errors(model):
        model = located_checkpoint(model)
        kind = checkpoint_type(model)
        if kind is not None and kind not in ("a-llmrec", *cf_encoder_types()):
            known = ", ".join(name.removeprefix(MODEL_TYPE_PREFIX) for name in cf_encoder_types())
            raise CheckpointError(
                f"{model} is {an(kind)} model, neither A-LLMRec nor a backbone; known ones: {known}; "
                "`allmrec --backbone-module NAME evaluate` imports one of your own"
            )
        config = AutoConfig.from_pretrained(model)
        _check_not_in_training(model, config, split, fair)
        popularity = PopularityRanker(data.item_counts("train"))
        if config.model_type != "a-llmrec":
            cf_encoder, catalog = load_trained_backbone(model)
            check_catalogs(catalog, data)
            if names:
                raise CheckpointError(f"{model} is a backbone alone, which has no rankers; leave out --ranker")
            return [BackboneRanker(cf_encoder), popularity]
        if not can_rank(config):
            raise CheckpointError(f"{model} {STAGE_1_ONLY}, or evaluate its folder backbone/")
        trust = trust_remote_code
        processor = ALLMRecProcessor.from_pretrained(model, trust_remote_code=trust)
        check_catalogs(processor.catalog, data, whole)
        loaded = ALLMRecModel.from_pretrained(
            model, language_model=llm or "auto", trust_remote_code=trust, allow_other_llm=allow_other_llm
        )
        place(loaded, process_state().device)
        backbone = Path(model) / "backbone"  # as trained, before cold items got embeddings from their texts
        if (backbone / CATALOG_FILE).exists():
            check_mixed(model, ItemCatalog.load(backbone), processor.catalog)
        alone = BackboneRanker(load_backbone_alone(str(backbone)) if backbone.is_dir() else loaded.cf_encoder)
        if not backbone.is_dir():
            alone.name += ", cold items from text"
        options: dict[str, Any] = {"batch_size": batch_size, "num_permutations": num_permutations}
        options["max_tokens_per_batch"] = max_tokens_per_batch
        num_candidates = None if whole else data.candidates("test").items.shape[1]
        rankers: list[Ranker] = [
            *checkpoint_rankers(loaded, processor, names, num_candidates, **options),
            alone,
        ]
        if fair:
            again = BackboneRanker(fair_backbone(Path(model), data))
            again.name += ", data of stage 2"
            rankers.append(again)
        return [*rankers, popularity]


def check_catalogs(catalog: ItemCatalog, data: PreparedData, whole: bool = True) -> None:
    """Check that the data have the items of the checkpoint in the same order; items added later follow them."""
    from ..data.digests import other_items
    from ..errors import CheckpointError

    other = other_items(catalog.item_ids, data.catalog.item_ids)
    if other is not None:
        raise CheckpointError(
            f"the checkpoint's catalogue ({len(catalog)} items) is not that of {data.name} ({data.num_items} items); "
            f"{other}; evaluate on the data it was trained on"
        )
    if whole and len(catalog) > data.num_items:
        raise CheckpointError(
            f"the checkpoint's catalogue has {len(catalog) - data.num_items} items that {data.name} lacks, so the "
            "whole catalogue is not the same for every method; use --protocol candidates"
        )


def check_mixed(model: str, backbone: ItemCatalog, catalog: ItemCatalog) -> None:
    """Check that backbone and model of a run folder number the items alike; items added later follow them."""
    from ..data.digests import other_items
    from ..errors import CheckpointError

    other = other_items(catalog.item_ids, backbone.item_ids)
    if other is not None:
        raise CheckpointError(
            f"{model} mixes two catalogues: of its backbone (backbone/) and of the model, {other}; its stages were "
            "trained on different data, so train it anew"
        )


def _trained_on_validation(model: str) -> bool:
    """Tell whether a run folder says that its stage 2 learnt from the validation items."""
    try:
        settings = json_value((Path(model) / "run.json").read_text(encoding="utf-8"))["arguments"]["project"]
        return (Path(model) / "project" / "done").is_file() and settings["targets"] == "validation"
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _check_not_in_training(model: str, config: Any, split: str, fair: bool) -> None:
    """Refuse to test a model on targets that it was trained on."""
    from ..errors import CheckpointError

    known = getattr(config, "in_training", None) or []
    if split in known:
        raise CheckpointError(
            f"{model} was trained on the {split} targets (`allmrec refit`), so its figures on them would be no test; "
            "evaluate the run that it was made from, or one of `allmrec refit --on train+validation` on --split test"
        )
    if known and fair:
        raise CheckpointError(f"{model} was refitted: its backbone has seen these data; leave out --fair-backbone")


def evaluate(
    model: Annotated[str, typer.Option(help="Run folder, Hub id, or `demo`; A-LLMRec or a backbone alone.")],
    data: Annotated[Path, typer.Option(help="Folder of `allmrec prepare`.")],
    protocol: Annotated[
        Protocol,
        typer.Option(
            help="`candidates`: the seeded file; `full`: whole catalogue; `paper`: generated text, exact match."
        ),
    ] = "candidates",
    split: Annotated[Split, typer.Option(help="Whose targets.")] = "test",
    max_users: Annotated[int | None, typer.Option(min=1, help="A seeded sample of users.")] = None,
    seed: SeedOption = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Users that the LLM reads at once.")] = 16,
    max_tokens_per_batch: MaxTokensOption = None,
    num_permutations: PermutationsOption = 1,
    ranker: Annotated[
        list[str] | None,
        typer.Option(help="A ranker of the checkpoint, such as fusion; repeat. All it was trained for by default."),
    ] = None,
    fair_backbone: Annotated[
        bool, typer.Option(help="Also the backbone trained on train + validation, which stage 2 has seen.")
    ] = False,
    shuffle_test: Annotated[
        bool, typer.Option(help="Also rank after histories in random order: what their order is worth.")
    ] = False,
    full_ranking: Annotated[
        bool,
        typer.Option(help="Beside candidates also the whole catalogue, by all that need no LLM pass for each item."),
    ] = True,
    output: Annotated[Path | None, typer.Option(help="Write the JSON report here.")] = None,
    per_user: Annotated[Path | None, typer.Option(help="Write every user's rank and ties here, as parquet.")] = None,
    update_card: Annotated[
        bool, typer.Option(help="Store the report in the run folder, and its numbers in the model card there.")
    ] = False,
    llm: LlmOption = None,
    gguf_file: GgufFileOption = None,
    allow_other_llm: OtherLlmOption = False,
    trust_remote_code: TrustOption = False,
    json_output: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Rank the same candidates by the model, by its backbone alone and by popularity.

    **Examples**

    `allmrec evaluate --model runs/games --data data/games`

    `allmrec evaluate --model runs/games --data data/games --protocol full --max-users 1000 --json`

    `accelerate launch --module allmrec_hf.cli.main evaluate --model runs/games --data data/games --output report.json`
    """
    with user_errors():
        from ..data.prepared import PreparedData
        from ..errors import ALLMRecError
        from ..evaluation.evaluation_cost import tell_evaluation_cost
        from ..evaluation.evaluator import evaluate as run
        from ..evaluation.llm_ranker import ALLMRecRanker
        from ..evaluation.shares import leave, rank_and_world
        from ..files import check_writable
        from ..hub.card import read_card, write_card
        from ..hub.stored_reports import report_file

        names = ranker or (["likelihood"] if protocol == "paper" else [])
        if protocol == "paper" and names != ["likelihood"]:
            raise ALLMRecError("--protocol paper has the LLM write a title, so it takes --ranker likelihood alone")
        if protocol == "paper" and num_permutations > 1:
            raise ALLMRecError(
                "--num-permutations averages scores, and --protocol paper has none: it compares generated text; leave "
                "out one of the two"
            )
        if protocol == "paper" and shuffle_test:
            raise ALLMRecError("--shuffle-test compares ranks, and --protocol paper has none; leave out one of the two")
        if output is not None and output == per_user:
            raise ALLMRecError(f"--output and --per-user name the same file, {output}; give each its own")
        for path in (output, per_user):
            if path is not None:
                check_writable(path)
        if fair_backbone and not (Path(model) / "checkpoints").is_dir():
            raise ALLMRecError(f"--fair-backbone trains in the folder of the run; {model} is none")
        if update_card and not Path(model).is_dir():
            raise ALLMRecError(f"--update-card needs a run folder; {model} is none")
        card = read_card(model) if update_card else None
        if split == "validation" and _trained_on_validation(model):
            stderr.print(
                f"warning: stage 2 of {model} was trained on validation targets, so its numbers on this split are no "
                "test of it",
                markup=False,
                soft_wrap=True,
            )
        prepared = PreparedData.load(data)
        whole, trust = protocol == "full", trust_remote_code
        rankers = load_rankers(
            model,
            prepared,
            batch_size,
            num_permutations,
            fair_backbone,
            whole,
            named_llm(llm, gguf_file),
            trust,
            allow_other_llm,
            names,
            max_tokens_per_batch=max_tokens_per_batch,
            split=split,
        )
        writes = rank_and_world()[0] == 0  # of several processes, all rank and one tells
        for each in rankers:
            if isinstance(each, ALLMRecRanker) and writes:
                tell_evaluation_cost(each, prepared, protocol, split, max_users, seed)
        first = rankers[0]
        added = isinstance(first, ALLMRecRanker) and len(first.processor.catalog) > prepared.num_items
        result = run(
            rankers,
            prepared,
            protocol,
            split,
            max_users=max_users,
            seed=seed,
            shuffle_test=shuffle_test,
            full_ranking=full_ranking and not added,  # of items that the others lack there is no fair ranking
        )
        leave()
        if not writes:
            return
        if output is not None:
            result.write_json(output)
        if per_user is not None:
            result.write_per_user(per_user)
        if card is not None:
            result.write_json(Path(model) / report_file(result.report))
            write_card(card.of_method(rankers[0].name).with_report(result.to_dict()), model)
        emit(result.to_dict()) if json_output else say(result.to_table())
