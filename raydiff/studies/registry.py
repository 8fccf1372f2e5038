"""The studies by name."""

from __future__ import annotations

import difflib

from raydiff.errors import UserError
from raydiff.studies import dydiff, pgd
from raydiff.studies.api import Study
from raydiff.studies.maze import LEGAL
from raydiff.studies.where_it_pays import WHERE_IT_PAYS

STUDIES: dict[str, Study] = {study.name: study for study in (WHERE_IT_PAYS, *pgd.STUDIES, *dydiff.STUDIES, LEGAL)}


def find_study(name: str) -> Study:
    """The study of that name. Raises ``UserError`` that names the nearest one."""
    if name in STUDIES:
        return STUDIES[name]
    near = difflib.get_close_matches(name, STUDIES, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UserError(f"There is no study {name!r}.{hint} On offer: {', '.join(STUDIES)}.")
