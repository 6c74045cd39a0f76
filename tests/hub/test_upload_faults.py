"""A push through the real client to a Hub that refuses, fails and breaks connections: one commit or none, once."""

from __future__ import annotations

import json

import pytest
from fake_hub import FakeHub, Fault

from allmrec_hf import hub_upload
from allmrec_hf.errors import ALLMRecError
from allmrec_hf.hub.publish import push_checkpoint
from allmrec_hf.hub_upload import upload

pytestmark = pytest.mark.usefixtures("plain_transfer")

FILES = {
    "config.json": json.dumps({"model_type": "bert"}),
    "README.md": "---\nlicense: mit\n---\n# Card\n",
    "model.safetensors": "weights" * 1000,
    "items.parquet": "catalogue",
}
CREATE = "POST /api/repos/create"
BRANCH = "POST /api/models/me/model/branch/"
LOOK = "GET /api/models/me/model(/revision/.*)?$"
YAML = "POST /api/validate-yaml"
PREUPLOAD = "POST /api/models/me/model/preupload/"
LFS = r"POST /me/model\.git/info/lfs/"
FILE = "PUT /lfs-storage/"
COMMIT = "POST /api/models/me/model/commit/"
EVERY = {
    "create": CREATE,
    "look": LOOK,
    "yaml": YAML,
    "preupload": PREUPLOAD,
    "lfs": LFS,
    "file": FILE,
    "commit": COMMIT,
}


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """Return the seconds waited for, without waiting."""
    told: list[float] = []
    monkeypatch.setattr("time.sleep", told.append)
    return told


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


def push(hub, checkpoint, **options):
    return push_checkpoint(checkpoint, "me/model", endpoint=hub.endpoint, **options)


def commits(hub):
    """Return how many commits a repository has after the one that made it; None where there is no repository."""
    repo = hub.repos.get(("model", "me/model"))
    return None if repo is None else len(repo.messages) - 1


def assert_whole(hub, revision="main"):
    assert hub.files("me/model", revision) == {name: text.encode() for name, text in FILES.items()}
    assert commits(hub) == 1


# -- what passes is tried again


FAULTS = {
    "429": {"status": 429},
    "500": {"status": 500},
    "503": {"status": 503},
    "cut before": {"when": "before"},
    "cut after": {"when": "after"},
    "cut in the answer": {"when": "middle"},
}


@pytest.mark.parametrize("step", EVERY)
@pytest.mark.parametrize("fault", FAULTS)
def test_what_passes_is_tried_again_and_committed_once(fake_hub, checkpoint, step, fault):
    fake_hub.faults = [Fault(EVERY[step], times=2, **FAULTS[fault])]
    push(fake_hub, checkpoint)
    done_by_the_first = step == "commit" and fault in ("cut after", "cut in the answer")
    assert fake_hub.faults[0].times == int(done_by_the_first)
    assert_whole(fake_hub)


@pytest.mark.parametrize("when", ["before", "after", "middle"])
def test_a_branch_is_made_once_though_the_connection_breaks(fake_hub, checkpoint, when):
    fake_hub.faults = [Fault(BRANCH, when=when)]
    push(fake_hub, checkpoint, revision="v1")
    assert_whole(fake_hub, "v1")
    assert fake_hub.files("me/model") == {}


def test_a_second_push_whose_answer_is_lost_replaces_weights_once(fake_hub, checkpoint):
    push(fake_hub, checkpoint)
    (checkpoint / "model.safetensors").rename(checkpoint / "model-00001-of-00001.safetensors")
    fake_hub.faults = [Fault(COMMIT, when="after")]
    push(fake_hub, checkpoint)
    assert commits(fake_hub) == 2
    assert set(fake_hub.files("me/model")) == {*FILES, "model-00001-of-00001.safetensors"} - {"model.safetensors"}


def test_the_hub_is_waited_for_as_long_as_it_asks(fake_hub, checkpoint, waits):
    fake_hub.faults = [Fault(COMMIT, status=429, headers={"Retry-After": "17"})]
    push(fake_hub, checkpoint)
    assert 17.0 in waits
    assert_whole(fake_hub)


def test_nobody_waits_an_hour(fake_hub, checkpoint, waits):
    fake_hub.faults = [Fault(COMMIT, status=429, headers={"Retry-After": "3600"})]
    with pytest.raises(ALLMRecError, match=r"too many requests; wait a while and push again\. Nothing was committed"):
        push(fake_hub, checkpoint)
    assert waits == []


def test_what_somebody_else_commits_meanwhile_is_kept(fake_hub, checkpoint, monkeypatch):
    push(fake_hub, checkpoint)
    (checkpoint / "README.md").write_text("another card")
    repo, real = fake_hub.repos["model", "me/model"], hub_upload.filter_repo_objects

    def meanwhile(*arguments, **options):
        if "NOTES.md" not in repo.revisions["main"]:
            repo.commit("main", {**repo.revisions["main"], "NOTES.md": b"theirs"}, "theirs")
        return real(*arguments, **options)

    monkeypatch.setattr(hub_upload, "filter_repo_objects", meanwhile)
    push(fake_hub, checkpoint)
    assert fake_hub.files("me/model")["NOTES.md"] == b"theirs"
    assert fake_hub.files("me/model")["README.md"] == b"another card"


# -- what does not pass is one error, and nothing is committed


@pytest.mark.parametrize("step", [step for step in EVERY if step != "create"])
@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 429}, {"when": "before"}], ids=["500", "429", "cut"])
def test_what_stays_broken_is_one_error_and_no_commit(fake_hub, checkpoint, step, fault):
    fake_hub.faults = [Fault(EVERY[step], times=1000, **fault)]
    with pytest.raises(ALLMRecError) as caught:
        push(fake_hub, checkpoint)
    told = str(caught.value)
    assert "\n" not in told
    assert any(words in told for words in ("the Hub at http", "the Hub refused 'me/model'"))
    unknown = step == "commit" and fault.get("status") != 429
    assert ("pushing again makes it once" in told) == unknown
    assert ("Nothing was committed" in told) != unknown
    assert fake_hub.files("me/model") == {}
    assert commits(fake_hub) == 0
    fake_hub.faults = []
    push(fake_hub, checkpoint)
    assert_whole(fake_hub)


@pytest.mark.parametrize("step", EVERY)
@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (401, "hf auth login"),
        (403, "a token that may write there"),
        (404, "look at the name and the revision"),
        (400, "look at what it says"),
    ],
)
def test_a_refusal_is_not_tried_again(fake_hub, checkpoint, waits, step, status, remedy):
    fake_hub.faults = [Fault(EVERY[step], status=status, times=1000)]
    with pytest.raises(ALLMRecError) as caught:
        push(fake_hub, checkpoint)
    told = str(caught.value)
    assert "\n" not in told
    if not (step == "yaml" and status == 400):  # the client words that itself
        assert told.startswith("the Hub refused 'me/model'")
        assert remedy in told
        assert told.endswith("Nothing was committed")
    assert waits == []
    assert not commits(fake_hub)


def test_a_repository_that_is_there_takes_a_push_of_a_token_that_may_not_make_one(fake_hub, checkpoint):
    push(fake_hub, checkpoint)
    (checkpoint / "README.md").write_text("another card")
    fake_hub.faults = [Fault(CREATE, status=403)]
    push(fake_hub, checkpoint)
    assert fake_hub.files("me/model")["README.md"] == b"another card"


@pytest.mark.parametrize("status", [200, 502])
def test_an_answer_that_is_no_json_is_explained(fake_hub, checkpoint, status):
    fake_hub.faults = [Fault(YAML, status=status, body=b"<html>", times=1000)]
    with pytest.raises(ALLMRecError, match=r"an answer that is no JSON; try again later\. Nothing was committed"):
        push(fake_hub, checkpoint)
    assert commits(fake_hub) == 0


def test_a_file_that_is_damaged_on_the_way_is_not_committed(fake_hub, checkpoint):
    fake_hub.faults = [Fault(FILE, status=400, times=1000)]
    with pytest.raises(ALLMRecError, match=r"the Hub refused 'me/model'.*Nothing was committed"):
        push(fake_hub, checkpoint)
    assert commits(fake_hub) == 0


def test_a_revision_that_is_a_pull_request_which_is_not_there_is_explained(fake_hub, checkpoint):
    with pytest.raises(ALLMRecError, match=r"(?i)the Hub refused 'me/model'.*revision.*Nothing was committed"):
        push(fake_hub, checkpoint, revision="refs/pr/9")


# -- pull requests, which a second attempt would open again


@pytest.mark.parametrize("fault", [{"status": 500}, {"when": "after"}], ids=["500", "cut"])
def test_a_pull_request_whose_answer_is_lost_is_not_opened_again(fake_hub, checkpoint, fault):
    push(fake_hub, checkpoint)
    (checkpoint / "README.md").write_text("another card")
    fake_hub.faults = [Fault(COMMIT, **fault)]
    with pytest.raises(ALLMRecError, match=r"Whether the pull request was opened is not known: look at .*discussions"):
        push(fake_hub, checkpoint, create_pr=True)
    assert fake_hub.faults[0].times == 0
    assert sum(name.startswith("refs/pr/") for name in fake_hub.repos["model", "me/model"].branches) <= 1


def test_a_pull_request_waits_for_a_hub_that_takes_no_more(fake_hub, checkpoint):
    push(fake_hub, checkpoint)
    (checkpoint / "README.md").write_text("another card")
    fake_hub.faults = [Fault(COMMIT, status=429)]
    assert push(fake_hub, checkpoint, create_pr=True).endswith("/discussions/1")


# -- data


@pytest.mark.parametrize("step", ["create", "look", "preupload", "lfs", "file", "commit"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_data_are_committed_once_too(fake_hub, checkpoint, step, when):
    where = EVERY[step].replace("/models/", "/datasets/").replace("POST /me", "POST /datasets/me")
    fake_hub.faults = [Fault(where, when=when)]
    address, _ = upload(checkpoint, "me/model", repo_type="dataset", endpoint=fake_hub.endpoint)
    assert address == f"{fake_hub.endpoint}/datasets/me/model"
    assert fake_hub.faults[0].times == 0
    assert set(fake_hub.files("me/model", repo_type="dataset")) == set(FILES)
    assert len(fake_hub.repos["dataset", "me/model"].messages) == 2


def test_data_that_are_there_take_a_push_of_a_token_that_may_not_make_a_repository(fake_hub, checkpoint):
    upload(checkpoint, "me/model", repo_type="dataset", endpoint=fake_hub.endpoint)
    fake_hub.faults = [Fault(CREATE, status=403)]
    address, _ = upload(checkpoint, "me/model", repo_type="dataset", endpoint=fake_hub.endpoint)
    assert address == f"{fake_hub.endpoint}/datasets/me/model"


# -- one commit, by whatever way the client sends large files


def test_a_push_never_takes_the_client_s_way_of_several_commits(fake_hub, checkpoint, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", lambda *_, **__: pytest.fail("may make several commits"))
    for number in range(60):
        (checkpoint / f"evaluation-{number}.json").write_text(str(number))
    push(fake_hub, checkpoint)
    assert commits(fake_hub) == 1
    assert len(fake_hub.files("me/model")) == 60 + len(FILES)


def test_a_hub_that_stops_in_the_middle_is_out_of_reach(checkpoint, monkeypatch):
    hub = FakeHub().start()
    endpoint = hub.endpoint

    def stops(*_, **__):
        hub.stop()
        raise ConnectionResetError("gone")

    monkeypatch.setattr("huggingface_hub.HfApi.create_commit", stops)
    with pytest.raises(ALLMRecError, match=r"cannot be reached: .*Nothing was committed"):
        upload(checkpoint, "me/model", endpoint=endpoint)
    assert commits(hub) == 0
