"""Tokens and enrollment codes of a group: how they are written, and the ids that the database gave those inserted."""

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from pisync_receiver.domain.facts import Changes
from pisync_receiver.domain.rows import EnrollmentCode, Token
from pisync_receiver.domain.submissions import CodesMade, Enrolled, Outcome


def access_statements(changes: Changes) -> Sequence[tuple[str, Sequence[Token] | Sequence[EnrollmentCode]]]:
    """Return the statements that write tokens and codes, and the rows of each; those that insert return hash and id."""
    return (
        ("insert_token", changes.tokens),
        ("insert_code", changes.codes),
        ("change_token", changes.tokens_changed),
        ("change_code", changes.codes_changed),
    )


def with_ids(outcomes: list[Outcome], ids: Mapping[str, int]) -> list[Outcome]:
    """Return the outcomes with the ids of new tokens and codes, which `ids` has by their hash."""
    return [_with_id(outcome, ids) for outcome in outcomes]


def _with_id(outcome: Outcome, ids: Mapping[str, int]) -> Outcome:
    if isinstance(outcome, Token):
        return replace(outcome, id=ids.get(outcome.token_hash, outcome.id))
    if isinstance(outcome, EnrollmentCode):
        return _with_code_id(outcome, ids)
    if isinstance(outcome, CodesMade):
        return CodesMade(codes=tuple(_with_code_id(code, ids) for code in outcome.codes))
    if isinstance(outcome, Enrolled):
        token = replace(outcome.token, id=ids.get(outcome.token.token_hash, outcome.token.id))
        return Enrolled(device_id=outcome.device_id, token=token, ending=outcome.ending)
    return outcome


def _with_code_id(code: EnrollmentCode, ids: Mapping[str, int]) -> EnrollmentCode:
    return replace(code, id=ids.get(code.code_hash, code.id))
