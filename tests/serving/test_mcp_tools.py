"""The tools of an assistant, asked through the official client: in this process, and by standard input and output."""

from __future__ import annotations

import asyncio
import json
import os
import sys

import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters

from allmrec_hf.serving.mcp_tools import create_mcp_server
from allmrec_hf.serving.schemas import RankRequest, RecommendRequest

HISTORY = ["M0001", "M0002"]


def asked(server, *calls):
    """Return the results of calls of tools, each a pair of a name and arguments, and the tools."""

    async def run():
        async with Client(server) as client:
            tools = (await client.list_tools()).tools
            return tools, [await client.call_tool(name, arguments) for name, arguments in calls]

    tools, results = asyncio.run(run())
    for result in results:
        assert json.loads(result.content[0].text) == result.structured_content
    return tools, results


@pytest.fixture
def server(service):
    return create_mcp_server(service)


def test_the_tools_take_the_requests_of_the_service(server):
    tools, _ = asked(server)
    schemas = {tool.name: tool.input_schema for tool in tools}
    assert list(schemas) == ["recommend", "rank", "explain", "add_item"]
    assert schemas["recommend"] == RecommendRequest.model_json_schema()
    assert schemas["rank"] == RankRequest.model_json_schema()
    assert [tool.annotations.read_only_hint for tool in tools] == [True, True, True, False]


def test_the_tools_answer_as_the_service_does(server, service):
    request = {"history": HISTORY, "ranker": "cf", "top_k": 3}
    _, found = asked(
        server,
        ("recommend", request),
        ("rank", {"history": HISTORY, "candidates": ["M0007", "M0008"], "ranker": "cf"}),
        ("explain", {"history": HISTORY, "item": "M0007", "candidates": ["M0008"], "gradient_steps": 1}),
        ("add_item", {"item_id": "N1", "title": "The Lost Harbor", "year": 1999}),
    )
    assert [result.is_error for result in found] == [False] * 4
    pipe = service.models["demo"].pipeline
    assert found[0].structured_content == {"model": "demo", "ranker": "cf", **pipe.respond(request)}
    assert len(found[1].structured_content["recommendations"]) == 2
    assert found[2].structured_content["item"]["item_id"] == "M0007"
    assert found[3].structured_content["added"] == ["N1"]
    assert service.models["demo"].item("N1")["further"] == {"year": 1999}


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("recommend", {}, "history"),
        ("recommend", {"history": HISTORY, "top_k": "many"}, "top_k"),
        ("rank", {"history": HISTORY, "candidates": ["X1"]}, "X1"),
        ("explain", {"history": HISTORY}, "item"),
        ("add_item", {"item_id": "N1"}, "title"),
        ("add_item", {"item_id": "M0001", "title": "Another"}, "M0001"),
        ("forget_all", {}, "no tool"),
    ],
)
def test_what_is_wrong_is_told_to_the_assistant(server, name, arguments, told):
    _, [result] = asked(server, (name, arguments))
    assert result.is_error
    assert told in json.dumps(result.structured_content["error"])


def test_the_command_speaks_on_standard_input_and_output(tmp_path):
    command = ["-m", "allmrec_hf.cli.main", "serve", "--model", "demo", "--mcp", "--state", str(tmp_path / "state")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    server = StdioServerParameters(command=sys.executable, args=command, env=environment)
    _, [result] = asked(server, ("recommend", {"history": HISTORY, "ranker": "cf", "top_k": 1}))
    assert len(result.structured_content["recommendations"]) == 1
