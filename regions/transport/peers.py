"""Links to the other regions: one websocket per pair, dialled by both sides, kept by one rule.

Both sides dial, so that one of them behind a firewall is enough. When two links of a pair come up
at once, the one that the smaller region name dialled stays; a newer link of the same dialler
replaces the older, which is dead (its node was restarted). Both sides judge alike, so they never
end up with one half of each.

A link carries the frames of `gossip`, which also pings; nothing here looks inside.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Protocol
from urllib.parse import parse_qs, urlencode, urlsplit

from websockets.asyncio.client import connect
from websockets.asyncio.connection import Connection
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.http11 import Request, Response

from crdtsync.errors import RemoteProtocolError
from crdtsync.identifiers import RegionId
from regions.config import Config
from regions.observability.logs import get_logger
from regions.transport.outgoing import CLOSE_GOING_AWAY, CLOSE_PROTOCOL, Outgoing, binary
from regions.transport.server import CLOSE_TIMEOUT_S, OPEN_TIMEOUT_S

PATH: Final = "/peer"
REDIAL_S_MIN: Final = 0.1
REDIAL_S_MAX: Final = 2.0  # the bound: a healed link is up within two seconds and a handshake
REDIAL_FACTOR: Final = 2.0
SECOND_DIALLER_DELAY_S: Final = 0.5  # lets the preferred dialler go first, so that most pairs dial once
FAREWELL_BYTES_MAX: Final = 64 << 10  # that are still sent on a link that is closed from here
LOOK_AGAIN_S: Final = 0.1  # how soon a dialler notices that its link is gone, or no longer refused
HANDSHAKES_MAX: Final = 64  # half-open connections to the peer port
FRAMES_QUEUED_MAX: Final = 2  # read ahead per connection; more would only hold memory


class Hearer(Protocol):
    """Who is told of links and frames: the node."""

    def peers(self) -> Mapping[RegionId, str]:
        """To whom links are to be kept now, and where; "" if it has to dial us."""

    def knows(self, peer: RegionId) -> bool:
        """Whether `peer` has anything to do with this cluster: it may be forgotten, and is told so."""

    def allows(self, peer: RegionId) -> bool:
        """Whether a link to `peer` may exist now (it is not cut, and the node is ready)."""

    def connected(self, peer: RegionId) -> None: ...

    def disconnected(self, peer: RegionId) -> None: ...

    def receive(self, peer: RegionId, frame: bytes) -> None:
        """One frame. Raises RemoteProtocolError to end the link."""


@dataclass(slots=True, eq=False)
class Link:
    """The websocket to one peer region that is in use."""

    peer: RegionId
    dialler: str
    outgoing: Outgoing


class PeerLinks:
    """Dials, accepts and carries frames; at most one link per peer."""

    def __init__(self, config: Config, hearer: Hearer) -> None:
        self._config = config
        self._hearer = hearer
        self._me = config.region
        self._links: dict[RegionId, Link] = {}
        self._log = get_logger(region=config.region, port="peers")
        self._diallers: dict[RegionId, asyncio.Task[None]] = {}
        self._keeper: asyncio.Task[None] | None = None
        self._dialling: set[Connection] = set()
        self._server: Server | None = None
        self._accepting = 0
        self._closing = False

    async def listen(self) -> str:
        """Listen for peers. Returns the URL."""
        listen = self._config.peer
        self._server = await serve(
            self._accept,
            listen.host,
            listen.port,
            process_request=self._admit,
            compression=None,
            open_timeout=OPEN_TIMEOUT_S,
            close_timeout=CLOSE_TIMEOUT_S,
            ping_interval=None,  # gossip pings, and measures with it
            max_size=self._config.limits.peer_frame_bytes,
            max_queue=FRAMES_QUEUED_MAX,
            server_header=None,
            reuse_port=True if listen.reuse_port else None,
        )
        port = next(iter(self._server.sockets)).getsockname()[1]
        return f"ws://{listen.host}:{port}"

    def dial(self) -> None:
        """Keep dialling every member that is not linked; members come and go."""
        self._keeper = asyncio.create_task(self._keep_diallers(), name="diallers")

    async def close(self) -> None:
        """Send what waits, say goodbye, stop dialling and listening."""
        self._closing = True
        if self._keeper is not None:
            self._keeper.cancel()
        for task in self._diallers.values():
            task.cancel()
        for link in list(self._links.values()):
            link.outgoing.close(CLOSE_GOING_AWAY, "the node is shutting down", flush=True)
        keepers = [] if self._keeper is None else [self._keeper]
        await asyncio.gather(*keepers, *self._diallers.values(), return_exceptions=True)
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    def send(self, peer: RegionId, frame: bytes) -> None:
        """Queue a frame. Without a link it is dropped: gossip repairs from the log."""
        link = self._links.get(peer)
        if link is not None:
            link.outgoing.put(frame)

    def disconnect(self, peer: RegionId, reason: str) -> None:
        """End the link to `peer`."""
        link = self._links.get(peer)
        if link is not None:
            self._log.info("link closed from here", peer=peer, reason=reason)
            # What was said last tells the peer why; a backlog need not hold up the end.
            link.outgoing.close(CLOSE_GOING_AWAY, reason, flush=link.outgoing.waiting_bytes <= FAREWELL_BYTES_MAX)

    def reset(self, reason: str) -> None:
        """End all links: the replica was discarded, and its successor begins new sessions."""
        for peer in list(self._links):
            link = self._links.pop(peer)
            link.outgoing.close(CLOSE_GOING_AWAY, reason)

    async def flushed(self) -> None:
        """Wait until nothing waits to be sent to any peer."""
        for link in list(self._links.values()):
            await link.outgoing.flushed()

    @property
    def linked(self) -> frozenset[RegionId]:
        return frozenset(self._links)

    # Dialling ----------------------------------------------------------------------------------

    async def _keep_diallers(self) -> None:
        while True:
            wanted = self._hearer.peers()
            for peer in [peer for peer in self._diallers if peer not in wanted]:
                self._diallers.pop(
                    peer
                ).cancel()  # it has no part in the cluster any more; nor has the link that it carries
            for peer in wanted:
                if peer not in self._diallers:
                    self._diallers[peer] = asyncio.create_task(self._keep_dialling(peer), name=f"dial {peer}")
            await asyncio.sleep(LOOK_AGAIN_S)

    async def _keep_dialling(self, peer: RegionId) -> None:
        delay = REDIAL_S_MIN
        if peer < self._me:
            await asyncio.sleep(SECOND_DIALLER_DELAY_S)
        while True:
            if peer in self._links or not self._hearer.allows(peer):
                delay = REDIAL_S_MIN
                # Jittered, so that both sides of a lost link do not dial in the same moment for ever.
                await asyncio.sleep(LOOK_AGAIN_S * (1 + random.random()) * (2 if peer < self._me else 1))  # noqa: S311
                continue
            begun = time.monotonic()
            if await self._dial(peer) and time.monotonic() - begun > REDIAL_S_MAX:
                delay = REDIAL_S_MIN  # a link that ended at once was refused: it is tried again ever more seldom
            await asyncio.sleep(delay * (0.5 + random.random() / 2))  # noqa: S311 - jitter, no secret
            delay = min(delay * REDIAL_FACTOR, REDIAL_S_MAX)

    async def _dial(self, peer: RegionId) -> bool:
        """One try, and the life of the link if there is one. Whether there was."""
        query = urlencode({"cluster": self._config.cluster, "region": self._me})
        address = self._hearer.peers().get(peer, "")
        if not address:
            return False
        url = f"{address}{PATH}?{query}"
        try:
            connection = await connect(
                url,
                compression=None,
                proxy=None,  # peers are reached directly, whatever the environment says
                open_timeout=OPEN_TIMEOUT_S,
                close_timeout=CLOSE_TIMEOUT_S,
                ping_interval=None,
                max_size=self._config.limits.peer_frame_bytes,
                max_queue=FRAMES_QUEUED_MAX,
                user_agent_header=None,
            )
        except InvalidStatus as error:
            body = (error.response.body or b"")[:200].decode(errors="replace").strip()
            self._log.info("peer refused the link", peer=peer, status=error.response.status_code, reason=body)
            return False
        except (OSError, TimeoutError, InvalidHandshake, InvalidURI, EOFError) as error:
            self._log.debug("peer not reached", peer=peer, reason=str(error) or type(error).__name__)
            return False
        await self._carry(peer, self._me, connection)
        return True

    # Accepting ---------------------------------------------------------------------------------

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Refuse at the handshake what may not become a link; the reason goes to both logs."""
        parts = urlsplit(request.path)
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        peer, cluster = query.get("region", ""), query.get("cluster", "")
        status, reason = HTTPStatus.FORBIDDEN, ""
        if parts.path != PATH:
            status, reason = HTTPStatus.NOT_FOUND, f"peers dial {PATH}"
        elif cluster != self._config.cluster:
            reason = f"this is cluster {self._config.cluster!r}, not {cluster[:64]!r}"
        elif not self._hearer.knows(RegionId(peer)):
            reason = f"region {peer[:32]!r} is not another member here"
        elif self._closing or not self._hearer.allows(RegionId(peer)):
            status, reason = HTTPStatus.SERVICE_UNAVAILABLE, "links to this region are refused for now"
        elif not self._may_replace(RegionId(peer), dialler=peer):
            status, reason = HTTPStatus.CONFLICT, "this pair has a link already"
        if not reason:
            connection.peer = RegionId(peer)  # type: ignore[attr-defined]
            return None
        level = self._log.info if status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.CONFLICT) else self._log.warning
        level("link refused", peer=peer[:32], address=connection.remote_address, reason=reason)
        return connection.respond(status, reason + "\n")

    async def _accept(self, connection: ServerConnection) -> None:
        peer: RegionId = connection.peer  # type: ignore[attr-defined]
        await self._carry(peer, peer, connection)

    # A link ------------------------------------------------------------------------------------

    def _may_replace(self, peer: RegionId, *, dialler: str) -> bool:
        """Whether a new link by `dialler` would take the place of the one in use, if there is one."""
        link = self._links.get(peer)
        return link is None or dialler == link.dialler or dialler < link.dialler

    async def _carry(self, peer: RegionId, dialler: str, connection: Connection) -> None:
        """The life of one link, from the end of its handshake."""
        if self._closing or not self._hearer.allows(peer) or not self._may_replace(peer, dialler=dialler):
            await connection.close(CLOSE_GOING_AWAY, "not wanted any more")
            return
        older = self._links.pop(peer, None)
        if older is not None:
            older.outgoing.close(CLOSE_GOING_AWAY, "a newer link takes its place")
            self._hearer.disconnected(peer)
        link = Link(peer, dialler, Outgoing(connection, self._config.limits.peer_queue_bytes))
        self._links[peer] = link
        sender = asyncio.create_task(link.outgoing.run(), name=f"send to {peer}")
        self._log.info("link up", peer=peer, dialled_by=dialler)
        self._hearer.connected(peer)
        reason = "closed by the peer"
        try:
            async for frame in connection:
                if self._links.get(peer) is not link:
                    break
                self._hearer.receive(peer, binary(frame))
                await asyncio.sleep(0)  # frames that came together are read without a wait: others get their turn
            reason = connection.close_reason or reason
        except RemoteProtocolError as error:
            reason = str(error)
            self._log.warning("frame refused", peer=peer, reason=reason)
            link.outgoing.close(CLOSE_PROTOCOL, reason)
        except ConnectionClosed as error:
            reason = str(error)
        finally:
            if self._links.get(peer) is link:
                del self._links[peer]
                self._hearer.disconnected(peer)
            link.outgoing.close(CLOSE_GOING_AWAY, "", flush=True)
            await sender
            self._log.info("link down", peer=peer, reason=reason)
