"""CTRL: a collaborative tower aligned with a text tower, then trained alone (Li et al., 2023, arXiv 2306.02841)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..catalog import ItemCatalog
from ..cf_encoder import CFEncoder, build_cf_encoder, cf_encoder_class
from ..data.prepared import PreparedData
from ..errors import ALLMRecError
from ..evaluation.rankers import BackboneRanker
from ..files import written_whole
from ..histories import pad_histories
from ..losses import symmetric_info_nce
from ..prompt import DOMAIN_WORDS, clean_title
from ..training.alignment import text_embedding_table
from ..training.backbone_training import train_backbone
from ..training.devices import global_batch_size
from ..training.loop import run_stage
from ..training.samples import Samples, bucketed_batches, drawn, last_of_training
from ..training.stage_arguments import StageArguments
from ..training.task import Batch, StageTask
from ..training.text_encoders import load_text_encoder
from .method import Method, Setting
from .shared import check_same_settings, digest_of_facts, run_arguments, stage_arguments

PROMPTS_FILE = "prompts-{digest}.safetensors"
HISTORY_IN_PROMPT = 10
DEFAULTS = {"temperature": 0.1, "joint_dim": 64, "alignment_samples": 50_000}


def prompt_texts(samples: Samples, catalog: ItemCatalog, domain: str) -> list[str]:
    """Return each sample as a sentence that names the last titles of the history and the item that follows."""
    noun, verb, past = DOMAIN_WORDS.get(domain, DOMAIN_WORDS["item"])

    def titles(items: np.ndarray) -> str:
        return ", ".join(f'"{clean_title(catalog.title(int(item)))}"' for item in items)

    return [
        f"The user {past} {titles(history[-HISTORY_IN_PROMPT:])}. Will the user {verb} the {noun} {titles(target)}?"
        for history, target in zip(samples.histories, samples.targets[:, None], strict=True)
    ]


class TowerAlignment(nn.Module):
    """The contrastive loss of a CF tower and a text tower that see the same user and item.

    Args:
        cf_encoder: The CF tower, which the loss trains.
        text_dim: d_text of the frozen text embeddings.
        joint_dim: Width of the space in which both meet.
        temperature: Of the contrastive loss.
    """

    def __init__(self, cf_encoder: CFEncoder, text_dim: int, joint_dim: int, temperature: float) -> None:
        super().__init__()
        self.cf_encoder = cf_encoder
        self.cf_head = nn.Linear(3 * cf_encoder.config.hidden_size, joint_dim)
        self.text_head = nn.Sequential(nn.LayerNorm(text_dim), nn.Linear(text_dim, joint_dim))
        self.temperature = temperature

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the `loss`.

        Args:
            batch: `item_ids`, `attention_mask` `(B, L)`, `targets` `(B,)`, `texts` `(B, d_text)` of the prompts.
        """
        users = self.cf_encoder.encode_users(batch["item_ids"], batch["attention_mask"])
        items = self.cf_encoder.item_embeddings[batch["targets"]]
        collaborative = self.cf_head(torch.cat([users, items, users * items], dim=-1))
        return {"loss": symmetric_info_nce(collaborative, self.text_head(batch["texts"]), self.temperature)}


class TowerAlignmentTask(StageTask):
    """CTRL's first stage for the training loop; it has no validation, the second one has.

    Args:
        module: The loss.
        samples: Histories and targets.
        texts: `(S, d_text)` the embedded prompt of each sample.
        arguments: Batch size and seed.
    """

    name = "ctrl-align"
    rows_add_up = False  # a contrast between the rows

    def __init__(self, module: TowerAlignment, samples: Samples, texts: Tensor, arguments: StageArguments) -> None:
        self.module: TowerAlignment = module
        self.samples, self.texts = samples, texts
        self.batch_size, self.seed = global_batch_size(arguments), arguments.seed
        self.length = module.cf_encoder.config.max_history_length

    def batches(self, epoch: int) -> Sequence[np.ndarray]:
        """Return the rows of each batch of an epoch; in a batch of one there is nothing to tell apart."""
        lengths = np.array([min(len(history), self.length) for history in self.samples.histories])
        batches = bucketed_batches(lengths, self.batch_size, self.seed, epoch)
        return [rows for rows in batches if len(rows) > 1]

    def collate(self, examples: np.ndarray, generator: np.random.Generator) -> Batch:
        """Return one batch."""
        samples = self.samples.take(examples)
        item_ids, mask = pad_histories(samples.histories, self.length)
        targets = torch.from_numpy(samples.targets)
        return {"item_ids": item_ids, "attention_mask": mask, "targets": targets, "texts": self.texts[examples]}


class CTRL(Method):
    """A CF tower that is first aligned with the text of its samples, then fine-tuned and served without text.

    Options: `temperature`, `joint_dim`, and `alignment_samples`, how many users' prompts are embedded at most.
    """

    name = "ctrl"
    paper = "Li et al., CTRL: Connect Collaborative and Language Model for CTR Prediction, 2023, arXiv 2306.02841"
    simplified = (
        "the CF tower is this package's sequential backbone in place of a click model over feature fields; the text "
        "encoder is frozen and only a head on its prompt embeddings is trained; one global vector for each sample in "
        "place of fine-grained maximum similarity; aligned on positives only, one for each user; fine-tuned with the "
        "backbone's own loss in place of binary cross entropy on labelled clicks"
    )
    options: ClassVar[tuple[str, ...]] = tuple(DEFAULTS)

    def fit(self, data: PreparedData, setting: Setting) -> BackboneRanker:
        """Align both towers, fine-tune the CF tower, and serve it alone."""
        options = self._numbers(setting)
        if cf_encoder_class(setting.backbone).trains_on != "sequences":
            raise ALLMRecError(
                f"the method {self.name} needs a backbone that reads sequences, which {setting.backbone} does not; "
                "choose sasrec, ligr, bsarec, hstu, gru4rec or nextitnet"
            )
        check_same_settings(self, setting)
        arguments = stage_arguments(setting, "align")
        samples = drawn(last_of_training(data), int(options["alignment_samples"]), arguments.seed)
        texts = self._prompt_embeddings(data, samples, setting)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(arguments.seed)
            cf_encoder = self._fresh_tower(data, setting)
            module = TowerAlignment(
                cf_encoder, texts.shape[1], int(options["joint_dim"]), float(options["temperature"])
            )
        task = TowerAlignmentTask(module, samples, texts, arguments)
        task.content = data.digests
        run_stage(task, arguments, setting.folder / "align", resume=True)
        trained = train_backbone(
            data, cf_encoder, stage_arguments(setting, "backbone"), setting.folder / "backbone", resume=True
        )
        return BackboneRanker(trained, name=self.name)

    def _numbers(self, setting: Setting) -> dict[str, float]:
        options = {**DEFAULTS, **self.checked(setting)}
        for name, value in options.items():
            kinds = int if isinstance(DEFAULTS[name], int) else (int, float)
            if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < float("inf"):
                wanted = "whole number" if kinds is int else "number"
                raise ALLMRecError(f"the option {name} of {self.name} must be a {wanted} above 0, got {value!r}")
        return options

    def _fresh_tower(self, data: PreparedData, setting: Setting) -> CFEncoder:
        fields = run_arguments(setting).backbone.options or {}
        model_type = cf_encoder_class(setting.backbone).config_class.model_type
        return build_cf_encoder({"model_type": model_type, **fields, "num_items": data.num_items})

    def _prompt_embeddings(self, data: PreparedData, samples: Samples, setting: Setting) -> Tensor:
        """Return `(S, d_text)`, encoded once and kept in the method's folder."""
        prompts = prompt_texts(samples, data.catalog, data.domain)
        facts = {"text_encoder": setting.text_encoder, "prompts": prompts}
        path = setting.folder / PROMPTS_FILE.format(digest=digest_of_facts(facts))
        if not path.exists():
            encoder = load_text_encoder(setting.text_encoder, setting.trust_remote_code)
            table = text_embedding_table(encoder, prompts)[1:]
            with written_whole(path) as temporary:
                save_file({"prompts": table.cpu().contiguous()}, temporary)
        return load_file(path)["prompts"]
