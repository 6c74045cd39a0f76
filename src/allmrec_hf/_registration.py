"""How transformers finds this package's classes without loading them, or torch, before one is wanted.

transformers keeps added classes in dictionaries of four of its modules. Importing these modules takes seconds (they
import torch, which `import transformers` alone does not), so it is left to the user's program. Once transformers has
loaded one, `when_imported` replaces its dictionary by one that registers this package's classes when it is first asked
for one of them.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from .cf_built_in import BUILT_IN

MODEL_TYPE = "a-llmrec"
TASK = "recommendation"
DEMO_CHECKPOINT = str(Path(__file__).parent / "demo" / "checkpoint")
"""The self-contained demo checkpoint in this package; its film world is invented."""
DEFAULT_MODEL_VARIABLE = "ALLMREC_DEFAULT_MODEL"
"""The environment variable that names another default model for `pipeline("recommendation")`."""


class DeferredEntries(dict):
    """A dictionary that is completed when it is first asked for an entry of ours, or for all entries.

    Args:
        entries: What it holds already.
        ours: Whether a key is of the entries that are missing.
        complete: Puts the missing entries in; it may be called more than once, and by several such dictionaries.
    """

    def __init__(self, entries: Any, ours: Callable[[Any], bool], complete: Callable[[], None]) -> None:
        super().__init__(entries)
        self._ours = ours
        self._complete = complete

    def __contains__(self, key: object) -> bool:
        if super().__contains__(key):
            return True
        if self._ours(key):
            self._complete()
        return super().__contains__(key)

    def __missing__(self, key: Any) -> Any:
        if key in self:
            return dict.__getitem__(self, key)
        raise KeyError(key)

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the entry, or the default."""
        return super().get(key, default) if key in self else default

    def __iter__(self) -> Iterator[Any]:
        self._complete()
        return super().__iter__()

    def __len__(self) -> int:
        self._complete()
        return super().__len__()

    def keys(self) -> Any:
        """Return all keys."""
        self._complete()
        return super().keys()

    def values(self) -> Any:
        """Return all values."""
        self._complete()
        return super().values()

    def items(self) -> Any:
        """Return all keys with their values."""
        self._complete()
        return super().items()


class Once:
    """Calls a function once. A call from inside that call does nothing, a call that failed is repeated by the next."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function
        self._lock = threading.RLock()
        self._running = self._done = False

    def __call__(self) -> None:
        """Call the function unless that has been done; another thread waits until it has been done."""
        if self._done:
            return
        with self._lock:
            if self._done or self._running:
                return
            self._running = True
            try:
                self._function()
                self._done = True
            finally:
                self._running = False


class _AfterImport(MetaPathFinder):
    """Calls a function with a module as soon as the module has been loaded."""

    def __init__(self, name: str, then: Callable[[ModuleType], None]) -> None:
        self.name = name
        self.then = then

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the specification that the other finders give, with a loader that calls the function at its end."""
        if fullname != self.name:
            return None
        specs = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_call(module: ModuleType) -> None:
                load(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                self.then(module)

            spec.loader.exec_module = load_and_call  # type: ignore[method-assign]
        return spec


def when_imported(name: str, then: Callable[[ModuleType], None]) -> None:
    """Call a function with a module: now where it is loaded, else as soon as it has been."""
    if name in sys.modules:
        then(import_module(name))  # waits where another thread is loading it
    else:
        sys.meta_path.insert(0, _AfterImport(name, then))


def _defer(registry: str) -> Callable[[ModuleType], None]:
    def replace(module: ModuleType) -> None:
        mapping = getattr(module, registry)
        mapping._extra_content = DeferredEntries(mapping._extra_content, _is_ours, _complete)

    return replace


def _is_ours(key: Any) -> bool:
    """Say whether a `model_type`, or a config class by its own, is one that this package registers."""
    model_type = key if isinstance(key, str) else getattr(key, "model_type", None)
    return model_type == MODEL_TYPE or model_type in BUILT_IN


def _defer_task(pipelines: ModuleType) -> None:
    pipelines.PIPELINE_REGISTRY.supported_tasks.setdefault(TASK, _task)


def _register() -> None:
    from transformers import AutoConfig, AutoModel, AutoProcessor
    from transformers.pipelines import PIPELINE_REGISTRY

    from .cf_encoder import cf_encoder_class
    from .configuration_allmrec import ALLMRecConfig
    from .modeling_allmrec import ALLMRecModel
    from .pipeline_recommendation import PipelineModel, RecommendationPipeline
    from .processing_allmrec import ALLMRecProcessor

    AutoConfig.register(MODEL_TYPE, ALLMRecConfig, exist_ok=True)
    AutoModel.register(ALLMRecConfig, ALLMRecModel, exist_ok=True)
    AutoProcessor.register(ALLMRecConfig, ALLMRecProcessor, exist_ok=True)
    for model_type in BUILT_IN:
        cf_encoder_class(model_type)  # registers a backbone saved alone
    tasks = PIPELINE_REGISTRY.supported_tasks
    if tasks.get(TASK) is _task:  # unless somebody registered a task of that name
        del tasks[TASK]
        PIPELINE_REGISTRY.register_pipeline(
            TASK,
            pipeline_class=RecommendationPipeline,
            pt_model=(PipelineModel,),
            default={"model": (os.environ.get(DEFAULT_MODEL_VARIABLE, DEMO_CHECKPOINT), "main")},
            type="multimodal",
        )
        _task.update(tasks[TASK])  # whoever holds it already


_complete = Once(_register)
_task = DeferredEntries({}, lambda key: True, _complete)


def register_when_needed() -> None:
    """Let transformers find this package's Auto classes and its task, which are loaded when one is first asked for."""
    when_imported("transformers.models.auto.configuration_auto", _defer("CONFIG_MAPPING"))
    when_imported("transformers.models.auto.modeling_auto", _defer("MODEL_MAPPING"))
    when_imported("transformers.models.auto.processing_auto", _defer("PROCESSOR_MAPPING"))
    when_imported("transformers.pipelines", _defer_task)
