"""The claims are of runs that are made, and the paper's differences are gains."""

import itertools

from reproduction import claims, paper
from reproduction.graph import Graph
from reproduction.scales import SMALL_SCALES


def test_every_claim_is_of_rows_that_are_run_and_the_papers_difference_is_a_gain():
    for claim in claims.CLAIMS:
        for which in ("better", "worse"):
            assert claim.column in claim.row(which).columns, claim
        if claim.points is not None and not claim.small:
            assert claim.points > 0
    assert {claim.row("better").key for claim in claims.CLAIMS} >= {"b", "e", "f"}
    assert len({claim.text for claim in claims.CLAIMS}) == len(claims.CLAIMS)
    assert paper.FULL in {claim.row("better").recipe for claim in claims.CLAIMS}


def test_pretraining_is_claimed_above_both_controls_in_every_column_of_theirs():
    """And in robustness; a control stands in each table that has the other."""
    for control, better in itertools.product(("scratch", "initialisation"), claims.PRETRAINED):
        of_pair = [c for c in claims.CLAIMS if (c.worse[1], c.better[1]) == (control, better)]
        assert {claim.column for claim in of_pair if claim.ours} == {"FT", "LIN", "FT1%"}
        assert any(
            (side.better, side.worse, side.kind) == (better, control, "robustness")
            for side in claims.SIDE_BY_SIDE.values()
        )
    with_none, with_start = (
        {name for name, table in paper.TABLES.items() if any(row.key == key for row in table.rows)}
        for key in ("scratch", "initialisation")
    )
    assert with_none == with_start == {"table1", "table2", "table5"}


def test_claims_on_rows_that_a_scale_leaves_out_run_nothing_unless_asked():
    small, demo, more = (Graph(SMALL_SCALES[name], "OUT") for name in ("small", "demo", "demo"))
    claims.prepare(small, (0,))
    claims.prepare(demo, (0,))
    claims.prepare(more, (0,), ["simmim", "misimmim"])
    longer = "seed-0/finetune/misimmim_swin_base_400ep"
    assert longer in small.jobs and longer not in demo.jobs and longer in more.jobs
    assert demo.jobs.keys() < more.jobs.keys()
