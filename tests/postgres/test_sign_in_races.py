"""A sign-in at one receiver and a revocation at another, at the same moment."""

import asyncio

from pisync_receiver.domain.rows import Token
from pisync_receiver.domain.sessions import has_ended
from pisync_receiver.domain.submissions import SessionOpen, SessionUse, TokenCreate, TokenRevoke
from tests.support.postgres import fresh_database, needs_postgres, opened
from tests.support.submissions import NOON

pytestmark = needs_postgres


def test_no_session_outlives_its_token() -> None:
    async def scene(url: str) -> None:
        async with opened(url) as one, opened(url) as other:
            for turn in range(15):
                (parent,) = await one.write([TokenCreate(scope="admin", token_hash=f"t{turn}", at_ms=NOON)])
                assert isinstance(parent, Token)
                before = SessionOpen(token_hash=f"a{turn}", parent_hash=f"t{turn}", at_ms=NOON)
                (session,) = await one.write([before])
                assert isinstance(session, Token)
                await asyncio.gather(
                    one.write([SessionUse(session_id=session.id, at_ms=NOON + 600_000)]),
                    one.write([SessionOpen(token_hash=f"b{turn}", parent_hash=f"t{turn}", at_ms=NOON)]),
                    other.write([TokenRevoke(token_id=parent.id, at_ms=NOON + 1)]),
                    other.write([SessionOpen(token_hash=f"c{turn}", parent_hash=f"t{turn}", at_ms=NOON)]),
                )
                left = await one.tokens_by_hash([f"{name}{turn}" for name in "abc"])
                assert all(has_ended(row, NOON + 1) for row in left)

    with fresh_database() as url:
        asyncio.run(scene(url))
