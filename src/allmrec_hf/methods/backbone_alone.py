"""A backbone alone as a method; A-LLMRec has to rank better than it."""

from __future__ import annotations

from dataclasses import replace

from ..data.prepared import PreparedData
from ..evaluation.rankers import BackboneRanker
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

    An item never seen in training keeps its initial vector, which means nothing.

    Args:
        name: The backbone's registered name.
    """

    simplified = (
        "trained with this package's recipe, by default cross entropy over the whole catalogue, for every backbone "
        "that can be; the preset `paper` takes the published losses. With cross entropy an item never seen in training "
        "is a negative and nothing else, so it ranks last: on never-seen targets Hit@1 is 0, below chance"
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.paper = PAPERS.get(name, "")

    def fit(self, data: PreparedData, setting: Setting) -> BackboneRanker:
        """Train the backbone, or take the one that an earlier method of the same data and seed left."""
        self.checked(setting)
        return BackboneRanker(trained_backbone(data, replace(setting, backbone=self.name)), name=self.name)
