"""Stage 2 against numbers of the program published with the paper (tests/parity)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from allmrec_hf import ALLMRecConfig, ALLMRecModel, ALLMRecProcessor, ItemCatalog, PromptTemplate, SASRecConfig
from allmrec_hf.histories import pad_histories
from allmrec_hf.prompt import NO_SLOT, USER_SLOT, Title
from tests.parity_weights import sasrec_weights

PARITY = Path(__file__).parent / "parity"
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
THROUGH_LM = {"rtol": 1e-3, "atol": 1e-5}  # ReLU sign flips of the LM
USERS = range(7)


@pytest.fixture(scope="module")
def numbers() -> dict[str, torch.Tensor]:
    return load_file(PARITY / "projection.safetensors")


@pytest.fixture(scope="module")
def texts() -> dict:
    return json.loads((PARITY / "projection.json").read_text())


@pytest.fixture(scope="module")
def processor(texts) -> ALLMRecProcessor:
    processor = ALLMRecProcessor(
        AutoTokenizer.from_pretrained(PARITY / "opt_tiny"),
        PromptTemplate.for_domain("game").to_dict(),
        max_history_length=15,
        max_length=1024,
    )
    titles = texts["titles"]
    processor.catalog = ItemCatalog.from_records(
        [{"item_id": str(i), "title": titles[str(i)]} for i in range(1, len(titles) + 1)]
    )
    return processor


@pytest.fixture(scope="module")
def model(numbers, texts) -> ALLMRecModel:
    cf_config = SASRecConfig(
        num_items=130, hidden_size=20, max_history_length=15, attend_padding=True, dropout=0.5, num_layers=2
    )
    model = ALLMRecModel(ALLMRecConfig(cf_config=cf_config, text_dim=32, item_embedding="cf"))
    model.cf_encoder.load_state_dict(sasrec_weights(load_file(PARITY / "sasrec.safetensors")))
    alignment = load_file(PARITY / "alignment.safetensors")
    for ours, layer in (("encoder", "fc1"), ("decoder", "fc2")):
        linear = getattr(model.aligner.item_autoencoder, ours)
        linear.weight.data = alignment[f"item_autoencoder.{layer}.weight"]
        linear.bias.data = alignment[f"item_autoencoder.{layer}.bias"]
    llm = AutoModelForCausalLM.from_pretrained(PARITY / "opt_tiny", attn_implementation="eager")
    model.attach_language_model(llm)
    for name in ("user_projector", "item_projector"):
        prefix = f"{name}."
        weights = {f"layers.{k.removeprefix(prefix)}": v for k, v in numbers.items() if k.startswith(prefix)}
        getattr(model, name).load_state_dict(weights)
    return model


def history_of(user: int) -> list[int]:
    """The whole history that the backbone read, without padding."""
    row = load_file(PARITY / "sasrec.safetensors")["input.history"][user]
    return row[row > 0].tolist()


def batch_of(processor, texts):
    """The training batch with the candidates in the order of that run."""
    rows = [history_of(user) for user in USERS]
    return processor.training_batch(rows, texts["candidate_ids"], texts["target_ids"])


def right_padded(values: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    return [row[real] for row, real in zip(values, mask.bool(), strict=True)]


def test_prompt_text_matches(processor, texts):
    template = PromptTemplate.from_dict(processor.prompt)
    for user in USERS:
        history, candidates = (
            [Title(i, processor.title(i)) for i in texts[key][user]] for key in ("history_ids", "candidate_ids")
        )
        segments = template.render(history, candidates)
        assert segments[0].slot == USER_SLOT
        assert segments[0].text == ""
        marks = ["[HistoryEmb]"] * len(history) + ["[CandidateEmb]"] * len(candidates) + [""]
        text = "".join(segment.text + mark for segment, mark in zip(segments[1:], marks, strict=True))
        assert text == texts["prompts"][user]
        assert template.render_answer(processor.title(texts["target_ids"][user])) == texts["answers"][user]


def test_token_ids_slots_and_labels_match(processor, texts, numbers):
    special = texts["special_token_ids_in_that_run"]
    batch = batch_of(processor, texts)
    theirs = right_padded(numbers["output.input_ids_without_user"], numbers["output.attention_mask"][:, 1:])
    their_labels = right_padded(numbers["output.labels"], numbers["output.attention_mask"])
    ours = right_padded(batch["input_ids"], batch["attention_mask"])
    our_labels = right_padded(batch["labels"], batch["attention_mask"])
    slots = right_padded(batch["slot_ids"], batch["attention_mask"])
    for user in USERS:
        assert slots[user][0] == USER_SLOT
        placeholder = (theirs[user] == special["[HistoryEmb]"]) | (theirs[user] == special["[CandidateEmb]"])
        assert torch.equal(slots[user][1:] != NO_SLOT, placeholder)
        assert slots[user][1:][placeholder].tolist() == texts["history_ids"][user] + texts["candidate_ids"][user]
        assert torch.equal(ours[user][1:][~placeholder], theirs[user][~placeholder])
        assert torch.equal(our_labels[user], their_labels[user])


def test_inputs_embeds_match(model, processor, texts, numbers):
    batch = batch_of(processor, texts)
    with torch.no_grad():
        embeds = model(**batch).inputs_embeds
    theirs = right_padded(numbers["output.inputs_embeds"], numbers["output.attention_mask"])
    for ours, expected in zip(right_padded(embeds, batch["attention_mask"]), theirs, strict=True):
        torch.testing.assert_close(ours, expected, **CLOSE)


@pytest.mark.parametrize("side", ["left", "right"])
def test_loss_and_projector_gradients_match(model, processor, texts, numbers, side):
    batch = dict(batch_of(processor, texts))
    if side == "right":  # the padding of that run; the loss must not depend on it
        mask = batch["attention_mask"]
        for name, fill in (("input_ids", 0), ("slot_ids", NO_SLOT), ("labels", -100)):
            rows = right_padded(batch[name], mask)
            batch[name] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill)
        batch["attention_mask"] = mask.flip(1)
    model.zero_grad()
    loss = model(**batch).loss
    assert loss.item() == pytest.approx(texts["loss"], rel=1e-4)
    loss.backward()
    for name in ("user_projector", "item_projector"):
        for key, parameter in getattr(model, name).layers.named_parameters():
            torch.testing.assert_close(parameter.grad, numbers[f"grad.{name}.{key}"], **THROUGH_LM)
    frozen = [n for n, p in model.named_parameters() if p.grad is not None and "projector" not in n]
    assert frozen == []


def test_history_of_that_run_is_what_the_prompt_names(texts):
    for user in USERS:
        assert history_of(user)[-10:] == texts["history_ids"][user]
        ids, mask = pad_histories([history_of(user)], 15)
        assert int(mask.sum()) == len(history_of(user)) == int((ids > 0).sum())
