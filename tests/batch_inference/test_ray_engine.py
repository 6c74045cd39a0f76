"""The engine ray: the rows of the local one, from two workers of which one dies. Needs Ray, else it is skipped."""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
from transformers import pipeline

from allmrec_hf.batch_inference import parts_folder
from allmrec_hf.batch_inference.recommend_users import recommend_users
from allmrec_hf.batch_inference.results import BatchSettings
from allmrec_hf.errors import ALLMRecError
from tests.batch_inference.test_recommend_users import PART, users_table
from tests.tiny import tiny_model, tiny_processor


def light():
    return tiny_model(), tiny_processor()


def load(dies: Path | None = None, full: bool = False):
    """Return the pipeline, in a process that dies once before it writes part 2, or whose disk is full."""
    write = parts_folder.PartsFolder.write

    def failing(self, number, table):
        if full:
            raise ALLMRecError("no space left on the disk")
        if number == 2 and dies is not None and not dies.exists():
            dies.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, number, table)

    if full or dies is not None:
        parts_folder.PartsFolder.write = failing  # type: ignore[method-assign]
    return pipeline("recommendation", model=tiny_model(), processor=tiny_processor())


def made(users: Path, output: Path, loader, engine):
    options = {"rows_per_part": PART, "tell": lambda line: None, "engine": engine, "workers": 2}
    return recommend_users(users, output, loader, light, BatchSettings(top_k=3), **options)


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray", reason='the engine ray needs Ray: pip install "allmrec-hf[ray]"')
    pytest.importorskip("ray.data", reason="the engine ray needs Ray Data")
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": path}})
    yield ray
    ray.shutdown()


def test_ray_is_named_where_it_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    users_table().write_parquet(tmp_path / "users.parquet")
    with pytest.raises(ALLMRecError, match=r"pip install \"allmrec-hf\[ray\]\""):
        made(tmp_path / "users.parquet", tmp_path / "out.parquet", load, "ray")
    assert [path.name for path in tmp_path.iterdir()] == ["users.parquet"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_workers_give_the_bytes_of_one_process_though_one_dies(cluster, tmp_path):
    users_table().write_parquet(tmp_path / "users.parquet")
    made(tmp_path / "users.parquet", tmp_path / "local.parquet", load, "local")
    dies = tmp_path / "died"
    found = made(tmp_path / "users.parquet", tmp_path / "ray.parquet", partial(load, dies), "ray")
    assert dies.exists()
    assert found.parts == 6
    assert (tmp_path / "ray.parquet").read_bytes() == (tmp_path / "local.parquet").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_full_disk_of_a_worker_is_told_in_one_sentence(cluster, tmp_path):
    users_table().write_parquet(tmp_path / "users.parquet")
    with pytest.raises(ALLMRecError, match=r"^no space left on the disk") as caught:
        made(tmp_path / "users.parquet", tmp_path / "out.parquet", partial(load, full=True), "ray")
    assert "\n" not in str(caught.value)
