"""The backbones of this package by `model_type`; importing the list loads none of them, nor torch."""

MODEL_TYPE_PREFIX = "allmrec-"
# One line for each backbone: its module, imported when first asked for, and the stem of its classes.
BUILT_IN = {
    "allmrec-sasrec": ("cf_sasrec", "SASRec"),
    "allmrec-ligr": ("cf_ligr", "LiGR"),
    "allmrec-bsarec": ("cf_bsarec", "BSARec"),
    "allmrec-hstu": ("cf_hstu", "HSTU"),
    "allmrec-gru4rec": ("cf_gru4rec", "GRU4Rec"),
    "allmrec-nextitnet": ("cf_nextitnet", "NextItNet"),
    "allmrec-ncf": ("cf_ncf", "NCF"),
    "allmrec-bprmf": ("cf_bprmf", "BPRMF"),
    "allmrec-lightgcn": ("cf_lightgcn", "LightGCN"),
    "allmrec-recbole-sasrec": ("cf_recbole_sasrec", "RecBoleSASRec"),
}
