"""Entry of Inference Endpoints: {"inputs": a request or a list of them, "parameters": {"top_k": 10}}."""

from importlib import import_module
from importlib.util import find_spec

from transformers import pipeline


class EndpointHandler:
    """Answers the requests of `pipeline("recommendation").respond`.

    Args:
        path: The folder of this repository.
    """

    def __init__(self, path=""):
        installed = find_spec("allmrec_hf") is not None
        if installed:
            import_module("allmrec_hf")  # which registers the task; else its code lies beside this file
        self.recommend = pipeline("recommendation", model=path, trust_remote_code=not installed)

    def __call__(self, data):
        """Return the response to a request; to a list of requests one each, `{"error": ...}` where one has none."""
        inputs = data["inputs"] if "inputs" in data else {key: data[key] for key in data if key != "parameters"}
        parameters = data.get("parameters")
        if parameters is None:
            parameters = {}
        if not isinstance(parameters, dict):
            raise ValueError(f"parameters are an object, such as {{'top_k': 10}}; got {str(parameters)[:80]!r}")
        on_error = {"on_error": "return"} if isinstance(inputs, list) else {}
        return self.recommend.respond(inputs, **{**on_error, **parameters})
