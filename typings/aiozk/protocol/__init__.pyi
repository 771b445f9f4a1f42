from typing import ClassVar

from aiozk.protocol.stat import Stat

class ACL: ...

UNRESTRICTED_ACCESS: ACL

class Request:
    opcode: ClassVar[int | None]
    special_xid: ClassVar[int | None]
    def serialize(self, xid: int | None = None) -> bytes: ...

class Response: ...

class ConnectRequest(Request):
    def __init__(
        self,
        *,
        protocol_version: int,
        last_seen_zxid: int,
        timeout: int,
        session_id: int,
        password: bytes,
        read_only: bool,
    ) -> None: ...

class ConnectResponse(Response):
    timeout: int
    session_id: int
    password: bytes
    def __init__(self, *, timeout: int, session_id: int, password: bytes) -> None: ...

class CloseRequest(Request): ...

class CloseResponse(Response): ...

class SyncRequest(Request):
    path: str
    def __init__(self, *, path: str) -> None: ...

class SyncResponse(Response):
    def __init__(self, *, path: str) -> None: ...

class ExistsRequest(Request):
    path: str
    watch: bool
    def __init__(self, *, path: str, watch: bool) -> None: ...

class ExistsResponse(Response):
    def __init__(self, *, stat: Stat) -> None: ...

class GetDataRequest(Request):
    path: str
    watch: bool
    def __init__(self, *, path: str, watch: bool) -> None: ...

class GetDataResponse(Response):
    data: bytes | None
    stat: Stat
    def __init__(self, *, data: bytes | None, stat: Stat) -> None: ...

class GetChildren2Request(Request):
    path: str
    watch: bool
    def __init__(self, *, path: str, watch: bool) -> None: ...

class GetChildren2Response(Response):
    children: list[str]
    stat: Stat
    def __init__(self, *, children: list[str], stat: Stat) -> None: ...

class SetDataRequest(Request):
    path: str
    data: bytes
    version: int
    def __init__(self, *, path: str, data: bytes, version: int) -> None: ...

class SetDataResponse(Response):
    def __init__(self, *, stat: Stat) -> None: ...

class DeleteRequest(Request):
    path: str
    version: int
    def __init__(self, *, path: str, version: int) -> None: ...

class DeleteResponse(Response): ...

class Create2Request(Request):
    path: str
    data: bytes
    flags: int
    def __init__(self, *, path: str, data: bytes, acl: list[ACL]) -> None: ...
    def set_flags(self, ephemeral: bool = False, sequential: bool = False, container: bool = False) -> None: ...

class Create2Response(Response):
    def __init__(self, *, path: str, stat: Stat) -> None: ...

class WatchEvent(Response):
    CREATED: ClassVar[int]
    DELETED: ClassVar[int]
    DATA_CHANGED: ClassVar[int]
    CHILDREN_CHANGED: ClassVar[int]
    type: int
    path: str
    def __init__(self, *, type: int, path: str) -> None: ...
