"""Prompts for vLLM: one tensor each, of the right shape and dtype, after which the LLM says what it says to us."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from allmrec_hf import ALLMRecError, CheckpointError
from allmrec_hf.exporting.export_checkpoint import ExportOptions, export_model
from allmrec_hf.exporting.export_users import ExportUser
from allmrec_hf.exporting.prompt_embeds import next_token_logits
from allmrec_hf.ranker import UserBatch
from allmrec_hf.ranker_letter import LetterRanker
from tests.tiny import tiny_model, tiny_processor

USERS = [ExportUser([1, 2, 3], [5, 9, 4], "u1"), ExportUser([7]), ExportUser([8, 9], [11], "u3")]


def written(world, folder, users=USERS, **options):
    chosen = ExportOptions(num_candidates=4, **options)
    record = export_model(world.model, world.processor, "vllm", folder, users, options=chosen)
    lines = (folder / "requests.jsonl").read_text(encoding="utf-8").splitlines()
    return record["parts"][0], [json.loads(line) for line in lines]


def test_letters_after_the_files_are_the_scores_of_the_ranker_letter(world, tmp_path):
    part, requests = written(world, tmp_path / "out", num_permutations=2)
    assert (part["prompts"], len(requests)) == (6, 6)
    ranker, catalog = LetterRanker(world.model, world.processor), world.processor.catalog
    batch = UserBatch.encode(world.model, world.processor, [user.history for user in USERS])
    rows = [[5, 9, 4], world.model.retrieve(**world.processor.history_tensors([[7]]), top_k=4).item_indices[0].tolist()]
    ours = ranker.score(batch, [*rows, [11]], num_permutations=2).scores
    for user, (row, scores) in enumerate(zip([*rows, [11]], ours, strict=True)):
        total = dict.fromkeys((catalog.item_id(item) for item in row), 0.0)
        for request in (requests[user], requests[3 + user]):
            logits = next_token_logits(world.model, tmp_path / "out" / request["file"])
            found = logits[[one["token_id"] for one in request["letters"]]].float().log_softmax(dim=0)
            for one, value in zip(request["letters"], found.tolist(), strict=True):
                total[one["item_id"]] += value / 2
        assert list(total.values()) == pytest.approx(scores[: len(row)].tolist(), abs=1e-4)
    assert [request["order"] for request in requests] == [0, 0, 0, 1, 1, 1]
    assert [request.get("user_id") for request in requests[:3]] == ["u1", None, "u3"]
    assert part["sampling"]["allowed_token_ids"] == ranker.letter_ids.tolist()


def test_a_file_holds_one_tensor_of_the_llms_width_and_dtype_without_padding(world, tmp_path):
    part, requests = written(world, tmp_path / "out")
    for request in requests:
        tensors = load_file(tmp_path / "out" / request["file"])
        assert list(tensors) == ["prompt_embeds"]
        assert tuple(tensors["prompt_embeds"].shape) == (request["tokens"], world.model.config.llm_dim)
        assert tensors["prompt_embeds"].dtype == world.model.language_model.dtype == torch.float32
    assert part["tensor"] == {"name": "prompt_embeds", "shape": ["tokens", 32], "dtype": "float32"}
    assert part["longest_prompt"] == max(request["tokens"] for request in requests)
    assert part["gate"]["overlap"] == 1
    assert "untested" in part["server"]


def test_generation_from_the_files_is_our_generation(world, tmp_path):
    part, requests = written(world, tmp_path / "out", prompts="generate")
    assert requests[0]["candidates"][0] == {"item_id": "I4", "title": world.processor.candidate_title(4)}
    for user, request in zip(USERS[::2], requests[::2], strict=True):
        batch = world.processor([user.history], [user.candidates])
        ours = world.model.generate(**batch, max_new_tokens=5)
        embeds = load_file(tmp_path / "out" / request["file"])["prompt_embeds"].unsqueeze(0)
        mask = torch.ones(embeds.shape[:2], dtype=torch.long)
        found = world.model.language_model.generate(
            inputs_embeds=embeds, attention_mask=mask, max_new_tokens=5, do_sample=False
        )
        assert found.tolist() == ours.tolist()
    assert part["sampling"]["temperature"] == 0
    assert part["sampling"]["stop_token_ids"] == [world.processor.tokenizer.eos_token_id]


def test_what_cannot_be_served_so_is_refused_and_leaves_nothing(world, tmp_path):
    def refused(message, kind=ALLMRecError, users=USERS, model=world.model, **options):
        with pytest.raises(kind, match=message):
            export_model(model, world.processor, "vllm", tmp_path / "out", users, options=ExportOptions(**options))
        assert list(tmp_path.iterdir()) == []

    refused("unknown path 'likelihood' .* no log-probabilities of a prompt's tokens", prompts="likelihood")
    refused("takes 1 to 26 candidates, got 30", num_candidates=30)
    refused("the path generate has one order", prompts="generate", num_permutations=2)
    refused("prompts are chosen by --prompts", rankers=("cf",))
    refused("a user has 30 candidates", users=[ExportUser([1], list(range(2, 32)))])
    refused("no prompts to export", CheckpointError, model=tiny_model(None))


def test_files_after_which_the_llm_says_something_else_are_refused(world, tmp_path, monkeypatch):
    from allmrec_hf.exporting import prompt_embeds

    right = prompt_embeds.save_file
    monkeypatch.setattr(
        prompt_embeds, "save_file", lambda tensors, path: right({k: v.flip(0) for k, v in tensors.items()}, path)
    )
    with pytest.raises(ALLMRecError, match=r"the prompts of the path letter: top-10 overlap 0\.\d{4} on 3 users"):
        written(world, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_llm_in_half_precision_has_its_prompts_in_it(tmp_path):
    model = tiny_model("llama")
    model.language_model.to(torch.bfloat16)
    export_model(model, tiny_processor(), "vllm", tmp_path / "out", USERS[:1])
    found = load_file(tmp_path / "out" / "prompts" / "00000000.safetensors")["prompt_embeds"]
    assert found.dtype == torch.bfloat16
