"""Checkpoints in fresh processes: from a folder, through the shim, through exported code, and through the Hub."""

import json

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from allmrec_hf import ALLMRecModel
from allmrec_hf.hub.card import ALLMRecCard, read_card, render_card, write_card
from tests.fake_hub import FakeHub
from tests.tiny import tiny_llm, tiny_model, tiny_processor

HISTORIES = [[1, 2, 3], [4]]
CANDIDATES = [[20, 21, 22], [24, 25]]
REQUEST = {"history": ["I1", "I2", "I3"], "candidates": ["I20", "I21", "I22"]}
SCORES = f"""
import json
def scores(model, processor):
    return model.score(**processor({HISTORIES}, {CANDIDATES})).tolist()
def ranking(recommend):
    return [[item["item_id"], item["score"]] for item in recommend({REQUEST})]
"""
WITHOUT_PACKAGE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "allmrec_hf":
            raise ModuleNotFoundError("No module named 'allmrec_hf'", name=name)
sys.meta_path.insert(0, Hidden())
"""
LOAD = """
from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline
def load(path, **options):
    model, processor = AutoModel.from_pretrained(path, **options), AutoProcessor.from_pretrained(path, **options)
    return model, processor, pipeline("recommendation", model=path, **options)
"""


@pytest.fixture(scope="module")
def hub():
    with FakeHub(token="hf_right") as hub:
        yield hub


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def run(hub, home):
    """Run code in a fresh process and return the JSON of its last line."""

    def run(code, home=home, **variables):
        process = hub.run_python(LOAD + SCORES + code, home=home, **variables)
        return json.loads(process.stdout.strip().splitlines()[-1])

    return run


def text_encoder():
    words = {word: index for index, word in enumerate(["[UNK]", "lonely", "river", "paper", "silent"])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    torch.manual_seed(5)
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=12)], device="cpu")


@pytest.fixture(scope="module")
def parts():
    processor = tiny_processor()
    return tiny_model(tokenizer_fingerprint=processor.fingerprint), processor


@pytest.fixture(scope="module")
def folder(parts, tmp_path_factory):
    """A self-contained checkpoint with the shim."""
    model, processor = parts
    path = tmp_path_factory.mktemp("checkpoints") / "shim"
    processor.save_pretrained(path)
    model.save_pretrained(path, include_llm=True)
    return path


@pytest.fixture(scope="module")
def expected(folder, parts):
    """Scores of the checkpoint in this process; loaded, because a file's layout in memory shows in the last bit."""
    return ALLMRecModel.from_pretrained(folder).score(**parts[1](HISTORIES, CANDIDATES)).tolist()


@pytest.fixture(scope="module")
def exported(parts, tmp_path_factory):
    model, processor = parts
    path = tmp_path_factory.mktemp("checkpoints") / "exported"
    model.save_pretrained(path, include_llm=True, export_code=True)
    processor.save_pretrained(path)
    return path


def content(path):
    """Return a file's text or JSON without what transformers fills in on loading: sub-configs' dtypes, `is_local`."""
    if path.suffix != ".json":
        return path.read_text()
    values = json.loads(path.read_text())
    values.pop("is_local", None)
    for name in ("cf_config", "text_config"):
        if name in values:
            values[name] = {key: value for key, value in values[name].items() if key != "dtype"}
    return values


def readable_files(folder):
    return {path.name: content(path) for path in folder.iterdir() if path.suffix in (".py", ".json", ".md")}


# -- a folder


@pytest.fixture(scope="module")
def through_shim(run, folder, tmp_path_factory):
    """Load, save and load in a process that imports nothing of ours."""
    again = tmp_path_factory.mktemp("shim") / "again"
    code = f"""
assert len(AutoProcessor.from_pretrained({str(folder)!r}, trust_remote_code=True).catalog) == 40
recommend = pipeline("recommendation", model={str(folder)!r}, trust_remote_code=True)
recommend.save_pretrained({str(again)!r})
model, processor, recommend = load({str(again)!r}, trust_remote_code=True)
AutoConfig.from_pretrained({str(again)!r})
print(json.dumps([type(model).__module__, scores(model, processor), ranking(recommend)]))
"""
    return run(code), again


def test_shim_loads_without_the_import(through_shim, expected):
    (module, found, ranking), _ = through_shim
    assert module == "allmrec_hf.modeling_allmrec"
    assert found == expected
    assert {item for item, _ in ranking} == set(REQUEST["candidates"])


def test_shim_survives_saving_what_it_loaded(through_shim, folder):
    assert readable_files(through_shim[1]) == readable_files(folder)
    assert {path.name for path in through_shim[1].glob("*.py")} == {"allmrec_remote.py", "handler.py"}


# -- the Hub


@pytest.fixture(scope="module")
def pushed(hub, run, parts, folder, tmp_path_factory):
    """Push a base LLM, a light checkpoint by its parts, one by its pipeline, and a self-contained one by its folder."""
    path = tmp_path_factory.mktemp("hub")
    wrong, right = tiny_llm("llama"), parts[0].language_model
    with torch.no_grad():
        wrong.lm_head.weight.mul_(-1)
    wrong.save_pretrained(path / "llm-wrong")
    right.save_pretrained(path / "llm")
    whole = ALLMRecModel.from_pretrained(folder)
    whole.config.text_encoder_included = True
    whole.attach_text_encoder(text_encoder())
    whole.save_pretrained(path / "whole")
    parts[1].save_pretrained(path / "whole")
    write_card(ALLMRecCard(name="Whole"), path / "whole")
    code = f"""
from huggingface_hub import HfApi
from allmrec_hf import ALLMRecModel, ALLMRecProcessor, push_checkpoint
api = HfApi()
api.create_repo("me/llm", private=True)
api.upload_folder(repo_id="me/llm", folder_path={str(path / "llm-wrong")!r})
api.create_branch("me/llm", branch="v1")
api.upload_folder(repo_id="me/llm", folder_path={str(path / "llm")!r}, revision="v1")
model = ALLMRecModel.from_pretrained({str(folder)!r})
processor = ALLMRecProcessor.from_pretrained({str(folder)!r})
model.config.base_model_name_or_path, model.config.base_model_revision = "me/llm", "v1"
model.push_to_hub("me/light", include_llm=False, private=True, revision="tested")
processor.push_to_hub("me/light", revision="tested")
model.model_card = "# By hand\\n"
recommend = pipeline("recommendation", model=model, processor=processor)
recommend.push_to_hub("me/code", include_llm=True, export_code=True)
recommend.push_to_hub("me/piped", include_llm=True, export_code=True)
recommend.push_to_hub("me/piped", include_llm=False, export_code=False)
push_checkpoint({str(path / "whole")!r}, "me/whole", revision="v2")
print("null")
"""
    run(code, home=path / "home")
    return hub


def test_pushed_parts_make_a_light_checkpoint_on_its_branch(pushed):
    assert pushed.files("me/light") == {}
    files = pushed.files("me/light", "tested")
    assert pushed.repos["model", "me/light"].private
    assert not any(name.startswith("language_model/") for name in files)
    assert {
        "README.md",
        "config.json",
        "model.safetensors",
        "items.parquet",
        "allmrec_remote.py",
        "handler.py",
        "requirements.txt",
    } <= set(files)
    assert b"base_model: me/llm" in files["README.md"]


def test_pushed_pipeline_keeps_the_card_and_replaces_an_earlier_push(pushed):
    first, second = list(pushed.repos["model", "me/piped"].commits.values())[1:]
    assert {"language_model/model.safetensors", "modeling_allmrec.py"} <= set(first)
    assert not any(name.startswith("language_model/") for name in second)
    assert [name for name in second if name.endswith(".py")] == ["allmrec_remote.py", "handler.py"]
    assert second["README.md"] == b"# By hand\n"


@pytest.fixture(scope="module")
def pulled(pushed, run, tmp_path_factory):
    """Ask for what cannot be had, then load what was pushed, and add items to it."""
    grown = tmp_path_factory.mktemp("pulled") / "grown"
    code = f"""
import allmrec_hf
from allmrec_hf import ALLMRecConfig, ALLMRecModel
def message(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except Exception as error:
        return f"{{type(error).__name__}}: {{error}}"
tiny = ALLMRecModel(ALLMRecConfig(joint_dim=2, text_dim=2))
refusals = {{
    "private": message(ALLMRecModel.from_pretrained, "me/light", revision="tested", token="hf_wrong"),
    "private auto": message(AutoModel.from_pretrained, "me/light", revision="tested", token="hf_wrong"),
    "nowhere": message(ALLMRecModel.from_pretrained, "me/nowhere"),
    "revision": message(ALLMRecModel.from_pretrained, "me/whole", revision="v9"),
    "revision auto": message(AutoModel.from_pretrained, "me/whole", revision="v9"),
    "foreign": message(ALLMRecModel.from_pretrained, "me/llm"),
    "push": message(tiny.push_to_hub, "me/light", token="hf_wrong"),
    "malformed": message(tiny.push_to_hub, "not an id"),
}}
light, piped = load("me/light", revision="tested"), load("me/piped")
recommend = pipeline("recommendation", model="me/whole", revision="v2")
before = scores(recommend.model, recommend.processor)
recommend.add_items([{{"item_id": "NEW", "title": "Lonely Paper", "description": "A river."}}])
recommend.save_pretrained({str(grown)!r})
again = pipeline("recommendation", model={str(grown)!r})
again.add_items([{{"item_id": "NEWER", "title": "Silent Paper"}}])
request = {{"history": ["NEW"], "candidates": ["NEW", "I2"]}}
assert recommend(request) == again(request)
after = scores(again.model, again.processor)
print(json.dumps([refusals, [scores(*light[:2]), scores(*piped[:2]), before, after], piped[0].model_card]))
"""
    del pushed.requests[:]
    return *run(code), grown


def test_light_checkpoint_loads_with_its_base_llm_at_its_revision(pulled, expected):
    light, piped, _, _ = pulled[1]
    assert light == piped == expected
    assert pulled[2] == "# By hand\n"


def test_self_contained_checkpoint_fetches_its_text_encoder_only_to_add_items(pulled, pushed, expected):
    _, _, before, after = pulled[1]
    assert before == after == expected
    fetched = [path for _, path in pushed.requests if "/me/whole/resolve/" in path]
    first = next(number for number, path in enumerate(fetched) if "/text_encoder/" in path)
    rest = [
        number for number, path in enumerate(fetched) if path.endswith(("language_model/model.safetensors", ".parquet"))
    ]
    assert rest
    assert max(rest) < first


def test_card_with_its_numbers_survives_added_items(pulled):
    assert read_card(pulled[3]).name == "Whole"
    assert (pulled[3] / "README.md").read_text() == render_card(ALLMRecCard(name="Whole", repo_id="me/whole"))


def test_refusals_of_the_hub_are_explained(pulled):
    found = pulled[0]
    assert found["private"].startswith("CheckpointError: cannot load the checkpoint me/light")
    assert "me/light" in found["private auto"]
    assert found["nowhere"].startswith("CheckpointError: cannot load the checkpoint me/nowhere")
    assert found["revision"].startswith("CheckpointError: cannot load the checkpoint me/whole")
    assert "v9" in found["revision"]
    assert "v9" in found["revision auto"]
    assert "me/llm is a checkpoint of the model type 'llama', not 'a-llmrec'" in found["foreign"]
    assert found["push"].startswith("ALLMRecError: the Hub refused 'me/light'")
    assert "hf auth login" in found["push"]
    assert found["malformed"].startswith("ALLMRecError: 'not an id' is no repository id")


def test_downloaded_checkpoint_loads_offline(pulled, run, expected):
    code = """
import allmrec_hf
try:
    allmrec_hf.ALLMRecModel.from_pretrained("me/other")
except allmrec_hf.CheckpointError as error:
    refusal = str(error)
print(json.dumps([refusal, scores(*load("me/light", revision="tested")[:2])]))
"""
    refusal, found = run(code, HF_HUB_OFFLINE="1")
    assert refusal.startswith("cannot load the checkpoint me/other")
    assert found == expected


# -- exported code


@pytest.fixture(scope="module")
def without_package(run, folder, exported, pushed, tmp_path_factory):
    """Where the package cannot be imported, try the shim, then exported code of a folder, of the Hub, saved again."""
    again = tmp_path_factory.mktemp("code") / "again"
    code = f"""
try:
    AutoModel.from_pretrained({str(folder)!r}, trust_remote_code=True)
except ImportError as error:
    refusal = str(error)
found = []
for path in ({str(exported)!r}, "me/code", {str(again)!r}):
    model, processor, recommend = load(path, trust_remote_code=True)
    found.append([type(model).__module__, scores(model, processor), ranking(recommend)])
    if path == "me/code":
        recommend.save_pretrained({str(again)!r})
assert "sentence_transformers" not in sys.modules and "allmrec_hf" not in sys.modules
print(json.dumps([refusal, found]))
"""
    return run(WITHOUT_PACKAGE + code), again


def test_shim_without_the_package_says_what_to_install(without_package):
    assert "Run `pip install allmrec_hf`" in without_package[0][0]


def test_exported_code_works_without_the_package(without_package, expected):
    modules, found, rankings = zip(*without_package[0][1], strict=True)
    starts = ("transformers_modules.exported.", "transformers_modules.me.code.", "transformers_modules.again.")
    assert all(module.startswith(start) for module, start in zip(modules, starts, strict=True))
    assert found == (expected, expected, expected)
    assert rankings[0] == rankings[1] == rankings[2]


def test_exported_code_survives_saving_what_it_loaded(without_package, exported):
    saved, original = readable_files(without_package[1]), readable_files(exported)
    assert saved.pop("README.md") == "# By hand\n"
    original.pop("README.md")
    for name in ("base_model_name_or_path", "base_model_revision"):
        assert saved["config.json"].pop(name) != original["config.json"].pop(name)
    assert saved == original
