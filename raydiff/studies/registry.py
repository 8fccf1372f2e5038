"""The studies by name."""

from __future__ import annotations

import difflib

from raydiff.errors import UserError
from raydiff.studies import aepo, dydiff, learners, pgd, swg
from raydiff.studies.aepo_posterior import POSTERIOR
from raydiff.studies.api import Study
from raydiff.studies.computed import Computed
from raydiff.studies.diffusion_ql import EDP
from raydiff.studies.maze import LEGAL
from raydiff.studies.swg_inference import SWG_INFERENCE
from raydiff.studies.swg_toy import SWG_TOY
from raydiff.studies.where_it_pays import WHERE_IT_PAYS

STUDIES: dict[str, Study] = {
    study.name: study
    for study in (WHERE_IT_PAYS, *pgd.STUDIES, *dydiff.STUDIES, LEGAL, *aepo.STUDIES, *swg.STUDIES, EDP, learners.STUDY)
}
_COMPUTED: tuple[Computed, ...] = (POSTERIOR, SWG_TOY, SWG_INFERENCE)
COMPUTED: dict[str, Computed] = {study.name: study for study in _COMPUTED}
"""Those that need no runs."""


def find_study(name: str) -> Study | Computed:
    """The study of that name. Raises ``UserError`` that names the nearest one."""
    studies: dict[str, Study | Computed] = {**STUDIES, **COMPUTED}
    if name in studies:
        return studies[name]
    near = difflib.get_close_matches(name, studies, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UserError(f"There is no study {name!r}.{hint} On offer: {', '.join(studies)}.")
