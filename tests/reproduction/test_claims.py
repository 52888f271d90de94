"""The claims are of runs that are made, and the paper's differences are gains."""

from reproduction import claims, paper


def test_every_claim_is_of_rows_that_are_run_and_the_papers_difference_is_a_gain():
    for claim in claims.CLAIMS:
        for which in ("better", "worse"):
            assert claim.column in claim.row(which).columns, claim
        if claim.points is not None and not claim.small:
            assert claim.points > 0
    assert {claim.row("better").key for claim in claims.CLAIMS} >= {"b", "e", "f"}
    assert len({claim.text for claim in claims.CLAIMS}) == len(claims.CLAIMS)
    assert paper.FULL in {claim.row("better").recipe for claim in claims.CLAIMS}
