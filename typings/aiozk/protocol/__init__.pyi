from typing import ClassVar

class ACL: ...

UNRESTRICTED_ACCESS: ACL

class Stat:
    created_zxid: int
    version: int
    child_version: int
    ephemeral_owner: int

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

class CloseRequest(Request): ...

class SyncRequest(Request):
    def __init__(self, *, path: str) -> None: ...

class ExistsRequest(Request):
    def __init__(self, *, path: str, watch: bool) -> None: ...

class GetDataRequest(Request):
    def __init__(self, *, path: str, watch: bool) -> None: ...

class GetDataResponse(Response):
    data: bytes | None
    stat: Stat

class GetChildren2Request(Request):
    def __init__(self, *, path: str, watch: bool) -> None: ...

class GetChildren2Response(Response):
    children: list[str]
    stat: Stat

class SetDataRequest(Request):
    def __init__(self, *, path: str, data: bytes, version: int) -> None: ...

class DeleteRequest(Request):
    def __init__(self, *, path: str, version: int) -> None: ...

class Create2Request(Request):
    def __init__(self, *, path: str, data: bytes, acl: list[ACL]) -> None: ...
    def set_flags(self, ephemeral: bool = False, sequential: bool = False, container: bool = False) -> None: ...

class WatchEvent(Response):
    type: int
    path: str
