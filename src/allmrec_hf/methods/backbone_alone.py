"""A backbone alone as a method; A-LLMRec has to rank better than it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from ..data.prepared import PreparedData
from ..errors import ALLMRecError
from ..evaluation.rankers import BackboneRanker
from ..training.section_arguments import BackboneArguments
from .method import Method, Setting
from .shared import trained_backbone

PAPERS = {
    "sasrec": "Kang and McAuley, ICDM 2018, arXiv 1808.09781",
    "ligr": "Borisyuk et al., arXiv 2502.03417; as eSASRec: Tikhonovich et al., RecSys 2025, arXiv 2508.06450",
    "bsarec": "Shin et al., AAAI 2024, arXiv 2312.10325",
    "hstu": "Zhai et al., ICML 2024, arXiv 2402.17152",
    "gru4rec": "Hidasi et al., ICLR 2016, arXiv 1511.06939; Hidasi and Karatzoglou, CIKM 2018, arXiv 1706.03847",
    "nextitnet": "Yuan et al., WSDM 2019, arXiv 1808.05163",
    "ncf": "He et al., WWW 2017, arXiv 1708.05031",
    "bprmf": "Rendle et al., UAI 2009, arXiv 1205.2618",
    "lightgcn": "He et al., SIGIR 2020, arXiv 2002.02126",
    "recbole-sasrec": "Kang and McAuley, ICDM 2018, arXiv 1808.09781, as in RecBole",
}


class BackboneAlone(Method):
    """A backbone trained on the training part, without text and without an LLM.

    An item never seen in training keeps its initial vector, which means nothing. The options are those of the section
    `backbone` (`learning_rate`, `options: {dropout: 0.5}`), on top of the preset and of the suite's budget.

    Args:
        name: The backbone's registered name.
    """

    simplified = (
        "trained with this package's recipe, by default cross entropy over the whole catalogue, for every backbone "
        "that can be; the preset `paper` takes the published losses. With cross entropy an item never seen in training "
        "is a negative and nothing else, so it ranks last: on never-seen targets Hit@1 is 0, below chance"
    )

    options = tuple(field.name for field in fields(BackboneArguments) if field.name not in {"name", "module", "seed"})

    def __init__(self, name: str) -> None:
        self.name = name
        self.paper = PAPERS.get(name, "")

    def fit(self, data: PreparedData, setting: Setting) -> BackboneRanker:
        """Train the backbone, or take the one that an earlier method of the same data and seed left."""
        return BackboneRanker(trained_backbone(data, self.own_setting(setting)), name=self.name)

    def checked(self, setting: Setting) -> Mapping[str, Any]:
        """Return the options.

        Raises:
            ALLMRecError: when one is unknown or has an impossible value.
        """
        options = super().checked(setting)
        try:
            BackboneArguments.from_dict(dict(options))
        except ALLMRecError as error:
            raise ALLMRecError(f"an option of the method {self.name} cannot be used: {error}") from error
        return options

    def own_setting(self, setting: Setting) -> Setting:
        """Return the setting with this backbone, and with the options in its budget."""
        stage = {**setting.budget.get("backbone", {}), **self.checked(setting)}
        return replace(setting, backbone=self.name, budget={**setting.budget, "backbone": stage})
